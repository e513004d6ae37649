package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"syscall"
)

// Client talks to one daemon. It may be used from several goroutines.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the daemon behind that socket; it connects at
// the first request.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Socket is the path of the socket.
func (c *Client) Socket() string { return c.socket }

// Close drops the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Version asks who the daemon is. It is the only request that a daemon of
// another protocol answers.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.call(ctx, http.MethodGet, "/v1/version", nil, nil, &v)
	return v, err
}

// Targets lists the types of targets, by name.
func (c *Client) Targets(ctx context.Context) ([]TargetType, error) {
	var r TargetsReply
	err := c.call(ctx, http.MethodGet, "/v1/targets", nil, nil, &r)
	return r.Targets, err
}

// Devices lists the devices by name, in byte order.
func (c *Client) Devices(ctx context.Context) ([]Info, error) {
	var r DeviceList
	err := c.call(ctx, http.MethodGet, "/v1/devices", nil, nil, &r)
	return r.Devices, err
}

// ListOptions is what List adds to each device.
type ListOptions struct {
	Tables, Statuses, Deps bool
	// Inactive asks for those of the inactive tables.
	Inactive bool
	// Flush has targets commit what they have before they give their status.
	Flush bool
}

// List lists the devices with what o asks for, in one request.
func (c *Client) List(ctx context.Context, o ListOptions) (DeviceList, error) {
	var r DeviceList
	q := query(Key{}, flag("tables", o.Tables), flag("statuses", o.Statuses), flag("deps", o.Deps),
		flag("inactive", o.Inactive), flag("flush", o.Flush))
	err := c.call(ctx, http.MethodGet, "/v1/devices", q, nil, &r)
	return r, err
}

// Tables lists the devices with the table of each, and with the status if asked
// for, in one request.
func (c *Client) Tables(ctx context.Context, statuses bool) (DeviceList, error) {
	return c.List(ctx, ListOptions{Tables: true, Statuses: statuses})
}

// Info describes one device, with the number of targets of its inactive table
// if asked for that.
func (c *Client) Info(ctx context.Context, key Key, inactive bool) (Info, error) {
	var r Info
	err := c.call(ctx, http.MethodGet, "/v1/device", query(key, flag("inactive", inactive)), nil, &r)
	return r, err
}

// Table gives the table lines of a device.
func (c *Client) Table(ctx context.Context, key Key, inactive bool) (StatusReply, error) {
	var r StatusReply
	err := c.call(ctx, http.MethodGet, "/v1/device/table", query(key, flag("inactive", inactive)), nil, &r)
	return r, err
}

// Status gives the status lines of a device; with noflush it does not wait
// for anything to be committed first.
func (c *Client) Status(ctx context.Context, key Key, inactive, noflush bool) (StatusReply, error) {
	var r StatusReply
	q := query(key, flag("inactive", inactive), flag("noflush", noflush))
	err := c.call(ctx, http.MethodGet, "/v1/device/status", q, nil, &r)
	return r, err
}

// Deps lists the lower devices, most recently opened first.
func (c *Client) Deps(ctx context.Context, key Key, inactive bool) (DepsReply, error) {
	var r DepsReply
	err := c.call(ctx, http.MethodGet, "/v1/device/deps", query(key, flag("inactive", inactive)), nil, &r)
	return r, err
}

// Apply runs the steps in order inside the daemon, all or nothing.
func (c *Client) Apply(ctx context.Context, steps ...Step) (ApplyReply, error) {
	return c.ApplyAs(ctx, "", steps...)
}

// ApplyAs is Apply with an id by which the caller may give it up.
func (c *Client) ApplyAs(ctx context.Context, id string, steps ...Step) (ApplyReply, error) {
	var r ApplyReply
	err := c.call(ctx, http.MethodPost, "/v1/apply", nil, ApplyRequest{ID: id, Steps: steps}, &r)
	return r, err
}

// Abandon gives up an apply whose context has ended, and returns when the daemon
// has done it or taken it back: which of the two, the devices say.
func (c *Client) Abandon(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/v1/apply/abandon", nil, AbandonRequest{ID: id}, nil)
}

// Do does one operation on one device as the kernel does it: what a failing
// operation changed on its way (a resume that left the device suspended)
// stays. Verbs that must leave nothing half done use Apply.
func (c *Client) Do(ctx context.Context, st Step) (StepResult, error) {
	var r StepResult
	err := c.call(ctx, http.MethodPost, "/v1/device/"+st.Op, nil, st, &r)
	return r, err
}

// Message sends words to the target at a sector of the live table.
func (c *Client) Message(ctx context.Context, key Key, sector uint64, words []string) (string, error) {
	var r MessageReply
	err := c.call(ctx, http.MethodPost, "/v1/device/message", query(key), MessageRequest{Sector: sector, Words: words}, &r)
	return r.Text, err
}

// Wait returns when the event number of the device differs from nr.
func (c *Client) Wait(ctx context.Context, key Key, nr uint32) (uint32, error) {
	var r WaitReply
	q := query(key, func(v url.Values) { v.Set("event_nr", strconv.FormatUint(uint64(nr), 10)) })
	err := c.call(ctx, http.MethodGet, "/v1/device/wait", q, nil, &r)
	return r.EventNr, err
}

// Discard tells the device that n bytes at off are not needed; n -1 means up
// to the end. What they read as later depends on the target.
func (c *Client) Discard(ctx context.Context, key Key, off, n int64) error {
	return c.call(ctx, http.MethodPost, "/v1/device/discard", query(key), RangeRequest{OffsetBytes: off, LengthBytes: n}, nil)
}

// Flush makes everything written to the device durable.
func (c *Client) Flush(ctx context.Context, key Key) error {
	return c.call(ctx, http.MethodPost, "/v1/device/flush", query(key), struct{}{}, nil)
}

// RemoveAll removes every device that is not open and names those that stayed.
func (c *Client) RemoveAll(ctx context.Context) ([]string, error) {
	var r RemoveAllReply
	err := c.call(ctx, http.MethodPost, "/v1/remove-all", nil, struct{}{}, &r)
	return r.Skipped, err
}

// Shutdown ends the daemon. It returns when the daemon has flushed and
// unmounted everything, or why it refused.
func (c *Client) Shutdown(ctx context.Context, force bool) error {
	return c.call(ctx, http.MethodPost, "/v1/shutdown", nil, ShutdownRequest{Force: force}, nil)
}

// Upgrade has a daemon with a keeper replaced by another program, while its
// devices are in use. It returns when that has begun; the daemon that answers
// next says how it went ([Version.After]).
func (c *Client) Upgrade(ctx context.Context, binary string) error {
	err := c.call(ctx, http.MethodPost, "/v1/upgrade", nil, UpgradeRequest{Binary: binary}, nil)
	var cut *cutOff
	if errors.As(err, &cut) {
		return nil // it had begun
	}
	return err
}

// Events calls fn for every event from now on, until the context ends, fn
// returns an error, or the daemon goes. Ready, if not nil, is called once the
// daemon has begun to listen: no event after that is missed.
func (c *Client) Events(ctx context.Context, ready func(), fn func(Event) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/events", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if ready != nil {
		ready()
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var e Event
		if err := dec.Decode(&e); err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return context.Cause(ctx)
			}
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

func flag(name string, set bool) func(url.Values) {
	return func(v url.Values) {
		if set {
			v.Set(name, "1")
		}
	}
}

func query(key Key, add ...func(url.Values)) url.Values {
	v := url.Values{}
	if key.Name != "" {
		v.Set("name", key.Name)
	}
	if key.UUID != "" {
		v.Set("uuid", key.UUID)
	}
	if key.Minor != nil {
		v.Set("minor", strconv.Itoa(*key.Minor))
	}
	for _, f := range add {
		f(v)
	}
	return v
}

// retries is how often a question is asked again whose answer was cut off.
const retries = 20

// twice are the changes that are the same done once or twice.
var twice = []string{
	"/v1/device/" + OpSuspend, "/v1/device/" + OpResume, "/v1/device/" + OpClear, "/v1/device/" + OpAttr,
	"/v1/device/discard", "/v1/device/flush",
}

// call sends a request and decodes the reply into out, if out is not nil. What
// only asks, or is the same done twice, is asked again when the daemon dies over
// it: its keeper, if it has one, starts another (package keeper), and without one
// nobody is there any more.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	for i := 0; ; i++ {
		err := c.once(ctx, method, path, q, in, out)
		var cut *cutOff
		if !errors.As(err, &cut) {
			return err
		}
		if method != http.MethodGet && !slices.Contains(twice, path) || i == retries || ctx.Err() != nil {
			return err
		}
	}
}

// cutOff is that a connection ended before the whole answer.
type cutOff struct{ err error }

func (e *cutOff) Error() string { return e.err.Error() }
func (e *cutOff) Unwrap() error { return e.err }

// cut is lost, with a connection that ended told from one that never was.
func (c *Client) cut(ctx context.Context, err error) error {
	lost := c.lost(ctx, err)
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return &cutOff{lost}
		}
	}
	return lost
}

// once is call without asking again.
func (c *Client) once(ctx context.Context, method, path string, q url.Values, in, out any) error {
	resp, err := c.send(ctx, method, path, q, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.cut(ctx, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, q url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		if replaced(b) {
			return nil, ErrNotUTF8
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "dmfuse", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set(ProtocolHeader, strconv.Itoa(Protocol))
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.cut(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, replyError(resp)
	}
	return resp, nil
}

// ErrNotUTF8 is why a request with other bytes is not sent.
var ErrNotUTF8 error = Errorf(CodeInvalid, "a name, path or word is not valid UTF-8: the control API cannot pass it on; use a link with another name")

// replaced says whether encoding/json put the replacement character in place of
// bytes that are no UTF-8: it writes that as an escape, and a real U+FFFD as it
// is. The daemon would take the name of something else for what was meant.
func replaced(b []byte) bool {
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		if bytes.HasPrefix(b[i+1:], []byte("ufffd")) {
			return true
		}
		i++ // what is escaped, so that of \\ufffd the second backslash begins nothing
	}
	return false
}

// lost says why there is no reply.
func (c *Client) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, errno := range []syscall.Errno{syscall.ECONNREFUSED, syscall.ENOENT} {
		if errors.Is(err, errno) {
			return Errorf(CodeNoDaemon, "no daemon answers on %s: %v", c.socket, errno)
		}
	}
	if errors.Is(err, syscall.EACCES) {
		return Errorf(CodePermission, "the socket %s belongs to another user", c.socket)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return Errorf(CodeNoDaemon, "the daemon on %s went away without an answer: %v", c.socket, err)
}

func replyError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var r ErrorReply
	if err := json.Unmarshal(b, &r); err != nil || r.Error == nil {
		return Errorf(CodeProtocol, "what answers is no dmfuse daemon of this protocol: %s: %s", resp.Status, firstLine(b))
	}
	return r.Error
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return fmt.Sprintf("%.200s", line)
}
