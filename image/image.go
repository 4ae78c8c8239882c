// Package image keeps container images: it pulls them from registries, unpacks their
// layers into overlay directories and hands out the snapshots that containers run on.
//
// It verifies every digest and refuses what it cannot verify: schema 1 manifests,
// documents that are index and manifest at once, layers of unknown type, tar entries
// that lead out of their layer. It never reads credentials from disk and never logs them.
//
// Store owns all goroutines: one per running pull with its layers, one that deletes
// what is no longer used, one per refresh of a usage figure. Close ends and awaits them.
//
// On disk, below Config.Root: images/ and layers/ with one record per object, l/ with
// the layers' trees, s/ with writable layers, trash/ with trees being deleted. Below
// Config.State (tmpfs): snapshots/ with one record per snapshot, which need not survive
// a reboot: writable layers without a record are deleted by Open. A tree in l/ or s/
// without a record is what a crash left, so an orphan is visible by listing.
package image

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Digest names content by its hash: "sha256:<hex>".
type Digest = digest.Digest

// ID is the digest of an image's configuration. It is the one identity of an image:
// the same for every tag, registry and compression of the same content.
type ID string

// Auth holds the credentials of one pull. It prints as "[redacted]".
type Auth struct {
	Username, Password string
	Auth               string // base64 of username:password
	ServerAddress      string // the registry they are meant for; empty: the one asked for
	IdentityToken      string // an OAuth2 refresh token
	RegistryToken      string // a bearer token, sent as it is
}

// String keeps credentials out of logs and messages.
func (Auth) String() string { return "[redacted]" }

// GoString keeps credentials out of %#v.
func (Auth) GoString() string { return "[redacted]" }

// PullRequest says what to pull and on whose behalf.
type PullRequest struct {
	Ref         string
	Auth        Auth
	Annotations map[string]string // recorded in the image's spec by the caller; not interpreted
}

// Image is an immutable snapshot of what is known about an image.
type Image struct {
	ID          ID
	RepoTags    []string // "docker.io/library/busybox:latest"; empty when pulled by digest
	RepoDigests []string // "docker.io/library/busybox@sha256:..." of the index, not the platform's manifest
	Size        int64    // bytes on disk, shared layers included, never 0
	Unique      int64    // of Size: what removing the image alone would free
	Pinned      bool
	Created     time.Time // when the image was built; zero when it does not say
	Config      Config
	DiffIDs     []Digest // digests of the uncompressed layers, bottom first
	ChainID     Digest   // identifies the whole stack of layers; empty without layers
	RawConfig   []byte   // the OCI configuration as it came, for people who inspect; never changed
}

// Config is what an image says about the process to run in it.
type Config struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	StopSignal   string
	Volumes      []string // sorted
	ExposedPorts []string // sorted: "80/tcp"
	Labels       map[string]string
	OS, Arch     string
	Variant      string
}

// Rootfs names the directories of a snapshot, all absolute. Those of layers may be names
// of descriptors (/proc/self/fd/N): good for this process, and until Release.
type Rootfs struct {
	Lower []string // read-only layers, top first, at least one; the order overlay's lowerdir wants
	Upper string   // empty in a view
	Work  string   // empty in a view
}

// PrepareOptions adjust a writable snapshot.
type PrepareOptions struct {
	// UpperUID and UpperGID are the host's ids of the container's root. The upper
	// directory gets the mode of the image's root directory, and its owner shifted
	// by these, since overlay shows the upper's own attributes at the root.
	UpperUID, UpperGID uint32
}

// FsStat is the use of a directory tree by one kind of object.
type FsStat struct {
	Path          string // a directory on the filesystem in question: statfs works on it
	Bytes, Inodes uint64
}

// Short cuts an ID to what a person reads.
func (id ID) Short() string {
	s := strings.TrimPrefix(string(id), "sha256:")
	return s[:min(len(s), 12)]
}
