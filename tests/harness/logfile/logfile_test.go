package logfile

import (
	"bytes"
	"testing"
)

func TestCheckFindsWhatIsWrong(t *testing.T) {
	for _, regions := range []int64{1, 63, 64, 65} {
		image := bytes.Repeat([]byte{0xa5}, 4096)
		Write(image, regions, func(r int64) bool { return r%2 == 0 })
		bits, err := Read(image, regions)
		if err != nil || int64(len(bits)) != regions || Count(bits) != int(regions+1)/2 {
			t.Fatalf("%d regions: %v, %v", regions, bits, err)
		}
		if image[16] != 0xa5 || image[Size(regions)] != 0xa5 {
			t.Error("what is no field was written")
		}
		a := bytes.Repeat([]byte{1}, int(regions)*2*512-512) // the last region is short
		b := bytes.Clone(a)
		if regions > 1 {
			b[2*512] = 2 // region 1 is out of sync by the log
		}
		if err := Check(bits, 2, a, a, b); err != nil {
			t.Errorf("%d regions: %v", regions, err)
		}
		b[0] = 2
		if Check(bits, 2, a, a, b) == nil {
			t.Errorf("%d regions: a difference in a clean region is not seen", regions)
		}
		for _, at := range []int{0, 4, 8} {
			bad := bytes.Clone(image)
			bad[at] ^= 0x80
			if _, err := Read(bad, regions); err == nil {
				t.Errorf("byte %d is not looked at", at)
			}
		}
		if regions%64 != 0 {
			image[Size(regions)-1] |= 0x80
			if _, err := Read(image, regions); err == nil {
				t.Error("a bit behind the last region is not seen")
			}
		}
	}
}
