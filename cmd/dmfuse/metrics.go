package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func newMetricsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print all figures of the daemon for monitoring",
		Long: `Print what the daemon counts, of itself and of all devices, in the text format of
Prometheus; with -J as a JSON object. The text is also at /metrics on the control
socket.`,
		Example: `  dmfuse metrics > /var/lib/node_exporter/dmfuse.prom
  curl -s --unix-socket /run/dmfuse/control.sock http://d/metrics`,
		Args: asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.metrics(cmd.Context()) },
	}
}

func (a *app) metrics(ctx context.Context) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	text, err := s.c.Metrics(ctx)
	if err != nil {
		return err
	}
	if !a.json {
		_, err = a.stdout.Write(text)
		return err
	}
	list, err := metricsIn(string(text))
	if err != nil {
		return err
	}
	return a.printJSON(struct {
		Metrics []metric `json:"metrics"`
	}{list})
}

// metric is one of the figures, with what was measured.
type metric struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"` // counter, gauge, summary
	Help    string   `json:"help"`
	Samples []sample `json:"samples"`
}

// sample is a value of a metric.
type sample struct {
	Suffix string            `json:"suffix,omitempty"` // of a summary: _sum, _count
	Labels map[string]string `json:"labels"`
	Value  *float64          `json:"value"` // null: no number, or an infinite one
}

// metricsIn reads the text format (Prometheus, exposition formats, version 0.0.4).
func metricsIn(text string) ([]metric, error) {
	list := []metric{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		what, rest, _ := strings.Cut(strings.TrimPrefix(line, "# "), " ")
		name, value, _ := strings.Cut(rest, " ")
		last := len(list) - 1
		switch {
		case line == "":
		case strings.HasPrefix(line, "# ") && what == "HELP":
			list = append(list, metric{Name: name, Help: strings.NewReplacer(`\\`, `\`, `\n`, "\n").Replace(value), Samples: []sample{}})
		case strings.HasPrefix(line, "# ") && what == "TYPE" && last >= 0 && list[last].Name == name:
			list[last].Type = value
		case strings.HasPrefix(line, "#"):
		case last < 0 || !strings.HasPrefix(line, list[last].Name):
			return nil, fmt.Errorf("the daemon sent a metric without a heading: %.60q", line)
		default:
			s, err := sampleIn(line[len(list[last].Name):])
			if err != nil {
				return nil, fmt.Errorf("the daemon sent a metric that is not understood: %.60q: %w", line, err)
			}
			list[last].Samples = append(list[last].Samples, s)
		}
	}
	return list, nil
}

// sampleIn reads what follows the name of a metric in a line.
func sampleIn(text string) (s sample, err error) {
	s.Labels = map[string]string{}
	at := strings.IndexAny(text, "{ ")
	if at < 0 {
		return s, errors.New("it has no value")
	}
	s.Suffix, text = text[:at], text[at:]
	for strings.HasPrefix(text, "{") || strings.HasPrefix(text, ",") {
		name, rest, _ := strings.Cut(text[1:], "=")
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return s, err
		}
		value, err := strconv.Unquote(quoted)
		if err != nil {
			return s, err
		}
		s.Labels[name] = value
		text = rest[len(quoted):]
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimPrefix(text, "}")), 64)
	if err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
		s.Value = &v
	}
	return s, err
}
