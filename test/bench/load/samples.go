package load

import (
	"maps"
	"slices"
	"sync"
	"time"
)

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// At is the sample below which the share q of all lie: 0.5 is the median, 1 the longest.
// Of no samples it is 0.
func (s Samples) At(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(s)-1, max(0, int(q*float64(len(s)))))]
}

// Mean is 0 of no samples.
func (s Samples) Mean() float64 {
	if len(s) == 0 {
		return 0
	}
	var sum float64
	for _, v := range s {
		sum += v
	}
	return sum / float64(len(s))
}

// add appends what one pod or one round took.
func (s Steps) add(one map[string]time.Duration) {
	for _, step := range slices.Sorted(maps.Keys(one)) {
		s[step] = append(s[step], ms(one[step]))
	}
}

// each calls f with 0 to n-1 on several workers, and returns all errors by index.
func each(n, workers int, f func(int) error) []error {
	errs := make([]error, n)
	jobs := make(chan int, n)
	for i := range n {
		jobs <- i
	}
	close(jobs)
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for i := range jobs {
				errs[i] = f(i)
			}
		})
	}
	wait.Wait()
	return errs
}
