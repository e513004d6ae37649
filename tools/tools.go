// Package tools holds the versions of the programs that check the project,
// away from go.mod of the project itself, which lists only what dmfuse needs.
// Run them with "go tool -modfile=tools/go.mod NAME".
package tools
