// Package sandbox holds the pods of a node and their containers: their phases, the
// steps that bring them up and down, their records on tmpfs, and recovery after the
// daemon was killed.
//
// It knows Kubernetes' words (pod, sandbox, container) but neither protobuf nor
// gRPC. Images, networks and launching are interfaces here, declared by what this
// package needs of them (see deps.go). One writer changes a pod or container at a
// time (its gate); readers load the last committed record and never wait. What must
// outlive a request runs on a context of its own and is joined by the retry.
//
// On disk it leaves one versioned file per pod and per container below State (see
// package journal), the pods' namespaces pinned below State, and their small files
// (hosts, resolv.conf, hostname) below State. Every goroutine it starts belongs to a
// Service and ends with Service.Close.
package sandbox
