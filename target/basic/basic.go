package basic

import "github.com/dmfuse/dmfuse/target"

// Types lists the targets of this package.
func Types() []target.Type { return []target.Type{Linear(), Striped(), Zero(), Error()} }
