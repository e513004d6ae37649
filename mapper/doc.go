// Package mapper is devices and their tables: a live and an inactive slot,
// suspend and resume, names, events, and the way of a request to its target.
package mapper
