// Package spec turns our own description of a container into an OCI runtime-spec.
//
// Everything here is pure: values in, values out, no file, no system call, no
// clock, no goroutine, nothing left on disk. What has to be read from an image
// (its passwd and group files) comes in as a bounded io.Reader, and what depends
// on the host (device numbers, the capabilities that we hold ourselves) as a value.
//
// The package refuses rather than repairs: a value that cannot be honoured is an
// error of kind errdef.ErrInvalid that names the field. It never looks at CRI's
// types; sandbox and cri fill in the description.
package spec
