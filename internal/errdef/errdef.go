// Package errdef names the ways a request can fail, without a word of gRPC.
//
// Every layer below cri wraps one of these kinds; one table in cri maps them to
// status codes. An error that wraps none of them is a defect of ours and becomes
// Internal. The package has no state and starts no goroutine.
package errdef

import "errors"

// The kinds of failure. Wrap them with what was attempted and on what:
//
//	fmt.Errorf("container %s: %w", id, errdef.ErrNotFound)
var (
	// ErrNotFound says that the named object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists says that the object exists already and is another one.
	ErrExists = errors.New("already exists")
	// ErrInvalid says that the request can never succeed as it stands.
	ErrInvalid = errors.New("invalid")
	// ErrPhase says that the object's present phase does not allow the request.
	ErrPhase = errors.New("not possible in this phase")
	// ErrRetry says that the same request may succeed later.
	ErrRetry = errors.New("try again later")
	// ErrExhausted says that a limit of the node or of a cgroup is reached.
	ErrExhausted = errors.New("resource exhausted")
	// ErrUnimplemented says that the call is switched off on purpose: the kubelet
	// takes it as a feature switch, so it is used for nothing else.
	ErrUnimplemented = errors.New("not implemented")
	// ErrDenied says that credentials are missing or do not suffice.
	ErrDenied = errors.New("access denied")
)

// Prefix is the leading word of a message that the kubelet recognises by text.
// See pkg/kubelet/images and pkg/kubelet/kuberuntime in k8s.io/kubernetes v1.36.
type Prefix string

// The prefixes that the kubelet looks for. The first two are recognised only with
// gRPC code Unknown, because its client strips the status wrapper only then.
const (
	RegistryUnavailable       Prefix = "RegistryUnavailable"
	SignatureValidationFailed Prefix = "SignatureValidationFailed"
	ImageVolumeMountFailed    Prefix = "ImageVolumeMountFailed"
	RROUnsupported            Prefix = "RROUnsupported"
)

// A Prefixed error reaches the kubelet with Prefix as the very first word and code
// Unknown, whatever it was wrapped in on its way up.
type Prefixed struct {
	Prefix Prefix
	Err    error
}

// Error puts nothing before the prefix.
func (e *Prefixed) Error() string { return string(e.Prefix) + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *Prefixed) Unwrap() error { return e.Err }

// WithPrefix wraps err, or returns nil for a nil err.
func WithPrefix(p Prefix, err error) error {
	if err == nil {
		return nil
	}
	return &Prefixed{Prefix: p, Err: err}
}
