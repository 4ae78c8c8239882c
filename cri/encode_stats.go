package cri

import (
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func encodeContainerStats(s sandbox.ContainerStats) *pb.ContainerStats {
	c, at := s.Container, nanos(s.Stats.At)
	out := &pb.ContainerStats{
		Attributes: partsOfContainer(c).attributes,
		Cpu:        encodeCPU(at, s.Stats.CPU),
		Memory:     encodeMemory(at, s.Stats.Memory),
		Io:         encodeIO(at, s.Stats.IO),
	}
	if w := s.Rootfs; !w.At.IsZero() {
		out.WritableLayer = encodeFilesystem(w.At, w.Mountpoint, w.Bytes, w.Inodes)
	}
	if w := s.Stats.Swap; w != nil {
		out.Swap = &pb.SwapUsage{
			Timestamp: at, SwapUsageBytes: uint64Value(w.Usage), SwapAvailableBytes: optionalUint64(w.Available),
		}
	}
	return out
}

func encodePodStats(s sandbox.PodStats) *pb.PodSandboxStats {
	at := nanos(s.Stats.At)
	return &pb.PodSandboxStats{
		Attributes: partsOfPod(s.Pod).attributes,
		Linux: &pb.LinuxPodSandboxStats{
			Cpu:        encodeCPU(at, s.Stats.CPU),
			Memory:     encodeMemory(at, s.Stats.Memory),
			Network:    encodeNetwork(at, s.Stats.Network),
			Process:    &pb.ProcessUsage{Timestamp: at, ProcessCount: uint64Value(s.Stats.Processes)},
			Containers: convert(s.Containers, encodeContainerStats),
			Io:         encodeIO(at, s.Stats.IO),
		},
	}
}

func encodeCPU(at int64, c sandbox.CPUStats) *pb.CpuUsage {
	return &pb.CpuUsage{
		Timestamp:            at,
		UsageCoreNanoSeconds: uint64Value(c.UsageCoreNanoSeconds),
		UsageNanoCores:       optionalUint64(c.UsageNanoCores),
		Psi:                  encodePSI(c.PSI),
	}
}

func encodeMemory(at int64, m sandbox.MemoryStats) *pb.MemoryUsage {
	return &pb.MemoryUsage{
		Timestamp:       at,
		WorkingSetBytes: uint64Value(m.WorkingSet),
		AvailableBytes:  optionalUint64(m.Available),
		UsageBytes:      uint64Value(m.Usage),
		RssBytes:        uint64Value(m.RSS),
		PageFaults:      uint64Value(m.PageFaults),
		MajorPageFaults: uint64Value(m.MajorPageFaults),
		Psi:             encodePSI(m.PSI),
	}
}

func encodeIO(at int64, p *sandbox.PSI) *pb.IoUsage {
	if p == nil {
		return nil
	}
	return &pb.IoUsage{Timestamp: at, Psi: encodePSI(p)}
}

func encodePSI(p *sandbox.PSI) *pb.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l sandbox.PSILine) *pb.PsiData {
		// CRI counts nanoseconds where the kernel counts microseconds.
		return &pb.PsiData{Total: l.TotalMicros * 1000, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &pb.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

// encodeNetwork puts the first interface apart, as CRI wants the default one.
func encodeNetwork(at int64, ifs []sandbox.InterfaceStats) *pb.NetworkUsage {
	if len(ifs) == 0 {
		return nil // the node's network: its counters are not the pod's
	}
	all := convert(ifs, func(i sandbox.InterfaceStats) *pb.NetworkInterfaceUsage {
		return &pb.NetworkInterfaceUsage{
			Name:    i.Name,
			RxBytes: uint64Value(i.RxBytes), RxErrors: uint64Value(i.RxErrors),
			TxBytes: uint64Value(i.TxBytes), TxErrors: uint64Value(i.TxErrors),
		}
	})
	return &pb.NetworkUsage{Timestamp: at, DefaultInterface: all[0], Interfaces: all[1:]}
}

// encodeFilesystem names a path that the kubelet can statfs.
func encodeFilesystem(at time.Time, mountpoint string, bytes, inodes uint64) *pb.FilesystemUsage {
	return &pb.FilesystemUsage{
		Timestamp:  nanos(at),
		FsId:       &pb.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes:  uint64Value(bytes),
		InodesUsed: uint64Value(inodes),
	}
}
