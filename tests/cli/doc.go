// Package cli tests the verbs for people with the real program, daemon, mounts
// and loop devices: what they do, what they refuse, and that a refusal changes
// nothing.
package cli
