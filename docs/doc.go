// Package docs carries the pages that the program shows itself: "dmfuse man"
// makes manual pages of section 7 of them. Who reads the files here and who reads
// the manual reads the same text.
package docs

import "embed"

// Pages are the pages of the targets (targets/NAME.md) and of the fault rules
// (faults.md).
//
//go:embed targets/*.md faults.md
var Pages embed.FS
