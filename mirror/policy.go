package mirror

import (
	"fmt"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
)

// ReadBalance says which legs are read.
type ReadBalance string

// Ways of reading data that is in sync.
const (
	ReadAuto    ReadBalance = ""        // load, or default if the table says nosync: nobody made the legs equal
	ReadLoad    ReadBalance = "load"    // the leg with the fewest reads under way
	ReadDefault ReadBalance = "default" // the default leg, as the kernel does
)

// LogFailure says what a log that fails means for writes of a mirror that
// handles errors.
type LogFailure string

// What a failing log means.
const (
	LogHold LogFailure = "hold" // they are held, or with keep_log fail, as in the kernel
	LogCore LogFailure = "core" // they go on: after a crash the log on the disk is of no use
)

// Policies are what a table line cannot say. They are set by message.
type Policies struct {
	ReadBalance ReadBalance
	Throttle    int           // percent of the time for recovery and scrub; 0: 100, no limit
	Rate        int64         // bytes a second for both instead; 0: no limit
	HoldTime    time.Duration // after which a held write fails; 0: never
	LogFailure  LogFailure    // "": LogHold
	Retry       time.Duration // after which regions out of sync are tried again; below 0: not without a resume; 0: 30 s
}

const defaultRetry = 30 * time.Second

// orDefault fills in what is not set.
func (p Policies) orDefault(t params) Policies {
	if p.ReadBalance == ReadAuto {
		p.ReadBalance = ReadLoad
		if t.word == syncNone {
			p.ReadBalance = ReadDefault
		}
	}
	if p.Throttle == 0 {
		p.Throttle = 100
	}
	if p.LogFailure == "" {
		p.LogFailure = LogHold
	}
	switch {
	case p.Retry == 0:
		p.Retry = defaultRetry
	case p.Retry < 0:
		p.Retry = 0
	}
	return p
}

// policyKeys are the keys of messages, in the order of printing.
var policyKeys = [...]string{"read-balance", "throttle", "hold-time", "log-failure", "retry"}

// String prints the policies as words KEY=VALUE.
func (p Policies) String() string {
	words := make([]string, len(policyKeys))
	for i, k := range policyKeys {
		words[i] = k + "=" + p.get(k)
	}
	return strings.Join(words, " ")
}

func (p Policies) get(key string) string {
	switch key {
	case "read-balance":
		return string(p.ReadBalance)
	case "throttle":
		return kcopyd.Limit{Percent: p.Throttle, Rate: p.Rate}.String()
	case "hold-time":
		return p.HoldTime.String()
	case "log-failure":
		return string(p.LogFailure)
	}
	return p.Retry.String()
}

// set changes one policy.
func (p *Policies) set(key, value string) error {
	want := ""
	switch key {
	case "read-balance":
		p.ReadBalance = ReadBalance(value)
		if p.ReadBalance != ReadLoad && p.ReadBalance != ReadDefault {
			want = "load or default"
		}
	case "throttle":
		if !p.setThrottle(value) {
			want = "a percentage, 0 to 100, or bytes a second, like 10m/s"
		}
	case "hold-time", "retry":
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			want = "a time like 90s, or 0 for never"
		}
		if key == "retry" {
			p.Retry = d
		} else {
			p.HoldTime = d
		}
	case "log-failure":
		p.LogFailure = LogFailure(value)
		if p.LogFailure != LogHold && p.LogFailure != LogCore {
			want = "hold or core"
		}
	default:
		return fmt.Errorf("%w: unknown policy %q: expected one of %s", blockdev.ErrInvalid, key, strings.Join(policyKeys[:], ", "))
	}
	if want != "" {
		return fmt.Errorf("%w: policy %s is %q: expected %s", blockdev.ErrInvalid, key, value, want)
	}
	return nil
}
