package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Message knows, beyond the kernel, which has no messages for mirrors:
//
//	throttle PERCENT|RATE/s the share of the time for recovery and scrub, or bytes a second
//	policy [KEY=VALUE...]   changes policies, and prints them
//	report                  a [Report] as JSON
//	recover                 regions out of sync are tried now
//	resync [LEG]            everything is copied again from the default leg
//	drop LEG                with a leg record: the leg is not used any more
//	scrub start [repair [LEG]], scrub stop, scrub report
//	                        compares the legs; the report is a [ScrubReport] as JSON
func (m *mirror) Message(ctx context.Context, words []string) (string, error) {
	if len(words) == 0 {
		return "", fmt.Errorf("%w: mirror: no message", blockdev.ErrInvalid)
	}
	verb, args := words[0], words[1:]
	switch {
	case verb == "throttle" && len(args) == 1:
		return "", m.changeAndKeep([]string{"throttle=" + args[0]})
	case verb == "policy":
		err := m.changeAndKeep(args)
		if err != nil {
			return "", err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.policies.String(), nil
	case verb == "report" && len(args) == 0:
		b, err := json.Marshal(m.Report())
		return string(b), err
	case verb == "recover" && len(args) == 0:
		return "", m.recoverNow()
	case verb == "drop" && len(args) == 1:
		return "", m.dropLeg(args[0])
	case verb == "resync":
		return "", m.resyncMessage(ctx, args)
	case verb == "scrub":
		return m.scrubMessage(args)
	}
	return "", fmt.Errorf("%w: mirror: unknown message %q: expected throttle PERCENT|RATE/s, policy [KEY=VALUE...], report, recover, resync [LEG], drop LEG, or scrub start|stop|report", blockdev.ErrInvalid, strings.Join(words, " "))
}

// changeAndKeep changes policies, all of them or none, and puts them into the
// leg record if there is one.
func (m *mirror) changeAndKeep(words []string) error {
	if err := m.changePolicies(words); err != nil || m.keep == nil {
		return err
	}
	set := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		set[k] = v
	}
	return m.keepPolicies(set)
}

// changePolicies changes all of them or none.
func (m *mirror) changePolicies(words []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.policies
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return fmt.Errorf("%w: mirror: %q is no KEY=VALUE", blockdev.ErrInvalid, w)
		}
		if err := p.set(k, v); err != nil {
			return err
		}
	}
	if len(words) > 0 {
		if p.LogFailure != m.policies.LogFailure {
			m.redo++
		}
		m.setPolicies(p)
		m.releaseLocked()
		m.loops.wake(loopRecover)
	}
	return nil
}

// setPolicies takes policies into use. The caller holds m.mu, or is alone.
func (m *mirror) setPolicies(p Policies) {
	m.policies = p
	m.balanced.Store(p.ReadBalance == ReadLoad)
	m.throttle.Set(p.Throttle)
	m.throttle.SetRate(p.Rate)
}

// recoverNow begins another pass over the regions that are out of sync.
func (m *mirror) recoverNow() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.mayRecoverLocked(); err != nil {
		return err
	}
	m.passLocked(0)
	return nil
}
