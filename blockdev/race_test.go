//go:build race

package blockdev

// raceEnabled: the race detector makes sync.Pool forget buffers on purpose.
const raceEnabled = true
