package server

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"github.com/dmfuse/dmfuse/control"
)

// abandonable are the applies that their callers have named, so that one who gives
// up can learn when his has ended without a wait for those of others.
type abandonable struct {
	mu        sync.Mutex
	running   map[string]*named // guarded by mu, as all below
	abandoned []string          // the last ones: a request that comes late is refused
}

// named is an apply that runs or waits for its turn.
type named struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

const abandonedKept = 64

// begin makes an apply known until end is called.
func (a *abandonable) begin(ctx context.Context, id string) (_ context.Context, end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case slices.Contains(a.abandoned, id):
		return nil, nil, context.Canceled
	case a.running[id] != nil:
		return nil, nil, control.Errorf(control.CodeInvalid, "an apply with the id %q is under way", id)
	}
	ctx, cancel := context.WithCancel(ctx)
	n := &named{cancel: cancel, ended: make(chan struct{})}
	if a.running == nil {
		a.running = make(map[string]*named)
	}
	a.running[id] = n
	return ctx, func() {
		cancel()
		a.mu.Lock()
		delete(a.running, id)
		a.mu.Unlock()
		close(n.ended)
	}, nil
}

// abandon breaks an apply off and returns when it has ended, done or taken back.
func (a *abandonable) abandon(ctx context.Context, id string) error {
	a.mu.Lock()
	n := a.running[id]
	a.abandoned = append(a.abandoned, id)
	if len(a.abandoned) > abandonedKept {
		a.abandoned = a.abandoned[1:]
	}
	a.mu.Unlock()
	if n == nil {
		return nil
	}
	n.cancel()
	select {
	case <-n.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Server) abandonApply(r *http.Request) (any, error) {
	var req control.AbandonRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if req.ID == "" {
		return nil, control.Errorf(control.CodeInvalid, "no id: expected the one that the apply was given")
	}
	return nil, s.named.abandon(r.Context(), req.ID)
}
