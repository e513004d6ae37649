package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/sirupsen/logrus"
)

// Options is what a server is made from.
type Options struct {
	Manager *mapper.Manager      // required
	Targets []control.TargetType // what "targets" answers, by name

	// Version is what "version" answers; Protocol is filled in.
	Version func() control.Version

	// Path is where the file of a device is. Nil: devices have no files.
	Path func(name string) string

	// Shutdown ends the daemon, all but the connections of this server. It
	// returns nil when all is done, or why it will not; pid is the process that
	// asks. Nil: refused.
	Shutdown func(ctx context.Context, pid int, force bool) error

	// Merges merges snapshots. Nil: refused.
	Merges Merger

	// Upgrade has this program replaced by another. Nil: refused.
	Upgrade func(binary string) error

	// Allowed says whether a user may use the socket. Nil: root and the user
	// this process runs as.
	Allowed func(uid uint32) bool

	// View says what is under an absolute path, for comparing with what a
	// caller sees. Nil: what this process sees.
	View func(path string) (control.View, error)

	Log logrus.FieldLogger // nil: nothing is logged
}

// Server answers requests until it is closed.
type Server struct {
	opts Options
	log  logrus.FieldLogger
	http http.Server
	made time.Time

	meters http.Handler // see metrics.go

	apply chan struct{} // holds one element while the steps of an apply run
	named abandonable   // the applies that have an id

	done     chan struct{} // closed by Close: streams and waits end
	doneOnce sync.Once
}

// New makes a server. Serve starts it.
func New(o Options) *Server {
	if o.Path == nil {
		o.Path = func(string) string { return "" }
	}
	if o.Allowed == nil {
		self := uint32(os.Geteuid())
		o.Allowed = func(uid uint32) bool { return uid == 0 || uid == self }
	}
	if o.View == nil {
		o.View = control.ViewOf
	}
	if o.Log == nil {
		l := logrus.New()
		l.SetOutput(nothing{})
		o.Log = l
	}
	s := &Server{opts: o, log: o.Log, made: time.Now(), apply: make(chan struct{}, 1), done: make(chan struct{})}
	s.meters = newMetrics(o.Manager)
	s.http = http.Server{
		Handler:           s.routes(),
		ConnContext:       peerContext,
		ReadHeaderTimeout: 30 * time.Second,
	}
	return s
}

// nothing takes a log nobody wants.
type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }

// Serve answers on l until Close; it then returns nil.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends streams and waits, lets running requests finish until ctx ends,
// then cuts what is left.
func (s *Server) Close(ctx context.Context) error {
	s.doneOnce.Do(func() { close(s.done) })
	err := s.http.Shutdown(ctx)
	if err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// handler does one request; what it returns is the reply.
type handler func(r *http.Request) (any, error)

// answer makes an http handler that checks the caller and the protocol, runs
// h and writes its reply or error.
func (s *Server) answer(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		reply, err := s.guarded(h, r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if reply == nil {
			reply = struct{}{}
		}
		writeJSON(w, http.StatusOK, reply)
	}
}

// guarded runs h when the caller may, and turns a panic into an error: a bug
// in one request must not take the devices of all others with it.
func (s *Server) guarded(h handler, r *http.Request) (reply any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.WithFields(logrus.Fields{"route": r.URL.Path, "panic": p}).Error(string(debug.Stack()))
			err = control.Errorf(control.CodeIO, "internal error in %s: %v (the stack is in the log of the daemon)", r.URL.Path, p)
		}
	}()
	if err := s.admit(r); err != nil {
		return nil, err
	}
	return h(r)
}

// admit checks who calls and in which protocol.
func (s *Server) admit(r *http.Request) error {
	who := peerOf(r.Context())
	if who.err != nil {
		return control.Errorf(control.CodePermission, "who calls is not known: %v", who.err)
	}
	if !s.opts.Allowed(who.cred.Uid) {
		return control.Errorf(control.CodePermission, "user %d may not use this daemon: only root and the user it runs as may", who.cred.Uid)
	}
	p := r.Header.Get(control.ProtocolHeader)
	if p != "" && p != strconv.Itoa(control.Protocol) && r.URL.Path != "/v1/version" {
		return control.Errorf(control.CodeProtocol, "the caller speaks protocol %.10s, this daemon (dmfuse %s) protocol %d",
			p, s.opts.Version().Version, control.Protocol)
	}
	return nil
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := wireError(err)
	s.log.WithFields(logrus.Fields{"route": shorten(r.Method + " " + r.URL.RequestURI()), "code": e.Code, "device": shorten(e.Device)}).
		Info(shorten(e.Message))
	writeJSON(w, e.Code.HTTPStatus(), control.ErrorReply{Error: e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, fmt.Appendf(nil, `{"error":{"code":"io","message":%q}}`, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(control.ProtocolHeader, strconv.Itoa(control.Protocol))
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // an error here: the caller went away
}

// shorten cuts what a caller chose for the log: a request of megabytes must not
// fill the disk of the log.
func shorten(text string) string {
	const limit = 1024
	if len(text) <= limit {
		return text
	}
	return fmt.Sprintf("%s... (%d bytes)", strings.ToValidUTF8(text[:limit], ""), len(text))
}

// body decodes the JSON body of a request. Fields that are not known are
// refused: a caller that spells one wrong must not get half of what it wants.
func body(r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return control.Errorf(control.CodeInvalid, "the body of the request is not valid: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return control.Errorf(control.CodeInvalid, "the body of the request is not valid: there is more after the first value")
	}
	return nil
}

// untilClosed is the context of a request that also ends when the server is
// closed.
func (s *Server) untilClosed(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	go func() {
		select {
		case <-s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
