package rig

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// T is what rig needs of a test. *testing.T is one; [Program] makes one for a
// program that is not a test.
type T interface {
	Helper()
	Name() string
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
}

// Program runs body in a fence of its own ([Contain]) and returns the exit
// status: 0 only if body reported no error and left nothing behind.
func Program(name string, body func(T)) int {
	return Contain(func() int {
		p := &program{name: name}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer p.end()
			body(p)
		}()
		<-done
		if p.Failed() {
			return 1
		}
		return 0
	})
}

type program struct {
	name     string
	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

func (p *program) Helper()      {}
func (p *program) Name() string { return p.name }

func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

// end runs the cleanups, last first, also those that a cleanup adds.
func (p *program) end() {
	for {
		p.mu.Lock()
		if len(p.cleanups) == 0 {
			p.mu.Unlock()
			return
		}
		last := len(p.cleanups) - 1
		f := p.cleanups[last]
		p.cleanups = p.cleanups[:last]
		p.mu.Unlock()
		// On a goroutine of its own: a Fatalf ends this cleanup only.
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		<-done
	}
}

func (p *program) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, p.name+": "+format+"\n", args...)
}

func (p *program) Errorf(format string, args ...any) {
	p.mu.Lock()
	p.failed = true
	p.mu.Unlock()
	p.Logf(format, args...)
}

func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *program) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

// Await calls cond until it is true, and fails t if it isn't within limit:
// for conditions that the kernel offers no event for.
func Await(t T, limit time.Duration, cond func() bool, format string, args ...any) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v, still not: %s", limit, fmt.Sprintf(format, args...))
		}
	}
}
