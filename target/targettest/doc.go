// Package targettest has the suite that every target runs. A [Case] says what
// the target is to be made from and how it looks to a reader; [Suite] checks the
// contract of package target with it:
//
//   - reads return what was written, at any byte, against a model in memory;
//   - zeroing, discards and extents, where the target has them, agree with it;
//   - the table text is a fixed point, and both texts are stable;
//   - lower devices are listed in the order of opening, with areas inside them;
//   - what was written before a flush, or with fua, survives every power cut;
//   - a flush does not hide the error of one of several devices;
//   - a context ends the wait for a lower device, and only that;
//   - errors of lower devices come through, and pass;
//   - requests may run beside each other, and a caller's buffer stays as it is;
//   - bad arguments are refused as such, and release what they took.
//
// The suite plays the mapper: it opens lower devices, and walks through resume,
// suspend and close in the order of the contract.
package targettest
