//go:build race

package harness

// raceBuild: the daemon is built with the race detector when the test is.
const raceBuild = true
