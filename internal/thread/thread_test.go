package thread

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRunReturnsTheError(t *testing.T) {
	want := errors.New("x")
	if got := Run(func() error { return want }); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestThreadIsNeverMainAndNeverSharedWithAnother(t *testing.T) {
	var mu sync.Mutex
	busy := map[int]bool{}
	var wait sync.WaitGroup
	for range 50 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			Run(func() error {
				tid := unix.Gettid()
				mu.Lock()
				if tid == unix.Getpid() || busy[tid] {
					t.Errorf("ran on thread %d, which is the main one or taken", tid)
				}
				busy[tid] = true
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				delete(busy, tid) // the number may come again when the thread has ended
				mu.Unlock()
				return nil
			})
		}()
	}
	wait.Wait()
}

func TestWhatIsChangedOnTheThreadStaysThere(t *testing.T) {
	var before, after unix.Stat_t
	if err := unix.Stat(".", &before); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := Run(func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			return unix.Chdir("/")
		}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(".", &after); err != nil {
			t.Fatal(err)
		}
		if before.Ino != after.Ino || before.Dev != after.Dev {
			t.Fatal("the working directory of another thread has changed")
		}
	}
}
