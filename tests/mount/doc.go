// Package mount checks what a device file does, point by point, with the real
// program and on each kind of device: what package fs promises has to hold for
// whatever lies below it.
package mount
