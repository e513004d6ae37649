package kcopyd

import (
	"fmt"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// benchDevs makes a source full of data and n destinations.
func benchDevs(b *testing.B, kind string, size int64, n int) (src blockdev.Device, dests []blockdev.Device) {
	b.Helper()
	open := func(name string) blockdev.Device {
		if kind == "mem" {
			return blockdev.NewMem(size)
		}
		return newFile(b, name, blockdev.SectorsIn(size))
	}
	src = open("src")
	check(b, devtest.Fill(src, sourceSeed, 0, blockdev.SectorsIn(size)))
	for i := range n {
		d := open(fmt.Sprint("dst", i))
		check(b, devtest.Fill(d, garbageSeed, 0, blockdev.SectorsIn(size)))
		dests = append(dests, d)
	}
	return src, dests
}

// BenchmarkCopy is the time of one copy after the other: submission, copy,
// callback, and the wake-up of who waits for it.
func BenchmarkCopy(b *testing.B) {
	for _, kind := range []string{"mem", "file"} {
		for _, v := range []struct {
			name  string
			bytes int64
			dests int
		}{{"4k", 4 << 10, 1}, {"64k", 64 << 10, 1}, {"1M", 1 << 20, 1}, {"16M", 16 << 20, 1},
			{"4k-8dests", 4 << 10, 8}, {"1M-8dests", 1 << 20, 8}} {
			b.Run(kind+"/"+v.name, func(b *testing.B) {
				src, devs := benchDevs(b, kind, v.bytes, v.dests)
				c := newClient(b, Options{})
				n := blockdev.SectorsIn(v.bytes)
				var dests []Region
				for _, d := range devs {
					dests = append(dests, Region{d, 0, n})
				}
				ended := make(chan bool, 1)
				fn := func(r bool, w uint64) { ended <- r || w != 0 }
				b.SetBytes(v.bytes)
				b.ReportAllocs()
				for b.Loop() {
					c.Copy(Region{src, 0, n}, dests, 0, fn)
					if <-ended {
						b.Fatal("failed")
					}
				}
			})
		}
	}
}

// BenchmarkDepth16 keeps 16 copies of 4 KiB going.
func BenchmarkDepth16(b *testing.B) {
	for _, kind := range []string{"mem", "file"} {
		b.Run(kind, func(b *testing.B) {
			const size, jobs = 4 << 10, 16
			src, devs := benchDevs(b, kind, size*jobs, 1)
			c := newClient(b, Options{})
			n := blockdev.SectorsIn(size)
			slots := make(chan int, jobs)
			for i := range jobs {
				slots <- i
			}
			var fns [jobs]Notify
			for i := range fns {
				fns[i] = func(bool, uint64) { slots <- i }
			}
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				i := <-slots
				at := blockdev.Sector(i) * n
				c.Copy(Region{src, at, n}, []Region{{devs[0], at, n}}, 0, fns[i])
			}
			c.Drain()
		})
	}
}

// BenchmarkBare is what BenchmarkCopy is measured against: the same reads and
// writes without this package.
func BenchmarkBare(b *testing.B) {
	for _, kind := range []string{"mem", "file"} {
		for _, size := range []int64{4 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dk", kind, size>>10), func(b *testing.B) {
				src, devs := benchDevs(b, kind, size, 1)
				buf := make([]byte, size)
				b.SetBytes(size)
				for b.Loop() {
					if _, err := src.ReadAt(buf, 0); err != nil {
						b.Fatal(err)
					}
					if _, err := devs[0].WriteAt(buf, 0); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
