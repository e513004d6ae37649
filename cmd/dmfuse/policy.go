package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newPolicyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "policy NAME [KEY=VALUE...]",
		Short: "Show or change what a table line cannot say",
		Long: `Show the policies of a device, or change some of them at once, all or none. What
there is depends on the type of the device; the page of the target in docs/targets
says what each means. They are kept beside the files of the device.`,
		Example: `  dmfuse policy data
  dmfuse policy data throttle=50 read-balance=default
  dmfuse policy data throttle=20m/s
  dmfuse policy before-upgrade overflow=pause pause-time=1h
  dmfuse policy before-upgrade commit=strict`,
		Args: asUsage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.policy(cmd.Context(), args[0], args[1:])
		},
	}
}

// policyValue is one policy. Keys hold dashes, so they are values in JSON.
type policyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func (a *app) policy(ctx context.Context, name string, changes []string) error {
	for _, c := range changes {
		if key, value, ok := strings.Cut(c, "="); !ok || key == "" || value == "" {
			return usagef("%q is no KEY=VALUE", c)
		}
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	m, err := s.device(ctx, name)
	if err != nil {
		return err
	}
	known, err := s.policies(ctx, m)
	if err != nil {
		return err
	}
	for _, c := range changes {
		key, _, _ := strings.Cut(c, "=")
		if !hasPolicy(known, key) {
			return usagef("%s has no policy %q; it has: %s", name, key, policyKeys(known))
		}
	}
	if len(changes) > 0 {
		text, err := s.c.Message(ctx, control.ByName(name), 0, append([]string{"policy"}, changes...))
		if err != nil {
			code := exitCode(err)
			if errorCode(err) == control.CodeInvalid {
				code = exitUsage
			}
			return fail(code, fmt.Errorf("the policies of %s stay as they are: %w", name, err), "see them with: dmfuse policy "+shellQuote(name))
		}
		known = policiesIn(text)
	}
	kept := true
	if n := len(known) - 1; n >= 0 && known[n] == (policyValue{"kept", "no"}) {
		known, kept = known[:n], false
		a.note("the policies of %s count until the daemon ends: they could not be kept beside its files", name)
	}
	if a.json {
		return a.printJSON(struct {
			Name     string        `json:"name"`
			Policies []policyValue `json:"policies"`
			Kept     bool          `json:"kept"` // what was changed outlives the daemon
		}{name, known, kept})
	}
	rows := [][]string{}
	for _, p := range known {
		rows = append(rows, []string{p.Key, p.Value})
	}
	return a.printTable([]string{"KEY", "VALUE"}, rows)
}

// policies asks a device for its policies; an error where it has none.
func (s *session) policies(ctx context.Context, m mapped) ([]policyValue, error) {
	if len(m.lines) == 0 {
		return nil, failf(exitFailed, "%s has no live table, so it has no policies", m.Name)
	}
	text, err := s.c.Message(ctx, control.ByName(m.Name), 0, []string{"policy"})
	switch code := errorCode(err); {
	case err == nil:
		return policiesIn(text), nil
	case code == control.CodeInvalid || code == control.CodeUnsupported:
		next := ""
		if m.lines[0].Type == "snapshot-origin" {
			next = "its snapshots have policies, and it has while one is merged into it; see them with: dmfuse snapshot ls"
		}
		return nil, fail(exitFailed, fmt.Errorf("%s has no policies: targets of the type %s take none", m.Name, m.lines[0].Type), next)
	}
	return nil, err
}

// policiesIn reads the answer of a target: words KEY=VALUE.
func policiesIn(text string) []policyValue {
	list := []policyValue{}
	for _, w := range strings.Fields(text) {
		k, v, _ := strings.Cut(w, "=")
		list = append(list, policyValue{k, v})
	}
	return list
}

func hasPolicy(list []policyValue, key string) bool {
	for _, p := range list {
		if p.Key == key {
			return true
		}
	}
	return false
}

func policyKeys(list []policyValue) string {
	keys := make([]string, len(list))
	for i, p := range list {
		keys[i] = p.Key
	}
	return strings.Join(keys, ", ")
}
