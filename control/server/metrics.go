package server

import (
	"net/http"
	"strconv"

	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsRoute answers in the text format of Prometheus.
const metricsRoute = "GET /metrics"

// newMetrics is the handler of that route.
func newMetrics(m *mapper.Manager) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(deviceMetrics{m}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// deviceMetrics reads everything anew at each look: devices come and go.
type deviceMetrics struct{ m *mapper.Manager }

// Describe names nothing beforehand: what there is follows from the tables.
func (c deviceMetrics) Describe(chan<- *prometheus.Desc) {}

// Metrics of every device.
var (
	byDevice   = []string{"device"}
	byOp       = []string{"device", "op"}
	byJob      = []string{"device", "kind", "state"}
	byTarget   = []string{"device", "line", "type"}
	requests   = describe("device_requests_total", "Requests that have ended", byOp)
	bytesDone  = describe("device_bytes_total", "Bytes of the requests that have ended", byOp)
	failures   = describe("device_errors_total", "Requests that have ended with an error", byOp)
	seconds    = describe("device_seconds_total", "Time that the requests took, summed up", byOp)
	inFlight   = describe("device_in_flight", "Requests under way, those that wait included", byDevice)
	suspended  = describe("device_suspended", "1 while the device is suspended", byDevice)
	deviceSize = describe("device_size_bytes", "Size of the device", byDevice)
	events     = describe("device_events_total", "Event number of the device", byDevice)
	jobDone    = describe("job_done_bytes", "How much of the job is done", byJob)
	jobTotal   = describe("job_total_bytes", "How much the job is in all, 0 while that is not known", byJob)
)

func describe(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("dmfuse_"+name, help, labels, nil)
}

// Collect reads all devices.
func (c deviceMetrics) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, d := range c.m.Devices() {
		name, io := d.Name(), d.IOCount()
		for _, op := range []struct {
			name  string
			count mapper.OpCount
		}{{"read", io.Read}, {"write", io.Write}, {"flush", io.Flush}, {"discard", io.Discard}} {
			counter(requests, float64(op.count.Requests), name, op.name)
			counter(bytesDone, float64(op.count.Bytes), name, op.name)
			counter(failures, float64(op.count.Errors), name, op.name)
			counter(seconds, op.count.Time.Seconds(), name, op.name)
		}
		info := d.Info(false)
		gauge(inFlight, float64(io.InFlight), name)
		gauge(suspended, number(info.Suspended), name)
		gauge(deviceSize, float64(d.Size()), name)
		counter(events, float64(d.EventNr()), name)
		for is, sum := range jobSums(d.Jobs()) {
			gauge(jobDone, float64(sum.Done), name, string(is.Kind), string(is.State))
			gauge(jobTotal, float64(sum.Total), name, string(is.Kind), string(is.State))
		}
		for _, t := range d.Metrics() {
			for _, m := range t.Metrics {
				desc := describe(m.Name, m.Help, byTarget)
				if m.Counter {
					counter(desc, m.Value, name, strconv.Itoa(t.Line), t.Type)
				} else {
					gauge(desc, m.Value, name, strconv.Itoa(t.Line), t.Type)
				}
			}
		}
	}
}

// jobSums adds up jobs of one kind and state: a figure is there once only.
func jobSums(jobs []target.Job) map[target.Job]target.Job {
	sums := map[target.Job]target.Job{}
	for _, j := range jobs {
		key := target.Job{Kind: j.Kind, State: j.State}
		sum := sums[key]
		sum.Done, sum.Total = sum.Done+j.Done, sum.Total+j.Total
		sums[key] = sum
	}
	return sums
}

// metrics answers whoever may use the API.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	if err := s.admit(r); err != nil {
		s.fail(w, r, err)
		return
	}
	s.meters.ServeHTTP(w, r)
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
