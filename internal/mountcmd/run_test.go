package mountcmd

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExpandQuotesForTheShell(t *testing.T) {
	if got, want := expand("x %m 100%% %%m", "/a b/it's"), `x '/a b/it'\''s' 100% %m`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// inPrivateNamespace runs fn where what it mounts, and what is mounted by the
// commands it starts, ends with the test.
func inPrivateNamespace(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread is not unlocked, and so ends with the goroutine:
		// its namespace is no other goroutine's.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWaitMounted(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name  string
		end   error // of the command, unless it stays
		stays bool
		want  string
	}{
		{"ends without", nil, false, "has not mounted"},
		{"fails", errors.New("exit status 5"), false, "exit status 5"},
		{"never ends", nil, true, "in time"},
	} {
		table, err := openMountTable()
		if err != nil {
			t.Error(err)
			return
		}
		ended, end, err := os.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		result := make(chan error, 1)
		limit := time.Minute
		if c.stays {
			limit = 50 * time.Millisecond
		} else {
			result <- c.end
			end.Close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err = waitMounted(ctx, dir, table, ended, result)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		unix.Close(table)
		ended.Close()
		end.Close()
	}
}

func TestAFailedCommandIsQuoted(t *testing.T) {
	command := "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 9; # %m"
	err := Run(context.Background(), command, t.TempDir())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"exit status 9", "\n  line 3\n", "\n  line 7"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "line 2") {
		t.Errorf("more than %d lines: %v", shownLines, err)
	}
}

func TestBoundedFileTakesNoMore(t *testing.T) {
	f, err := boundedFile(8)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.Write([]byte("12345678")); n != 8 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := f.Write([]byte("9")); !errors.Is(err, unix.EPERM) {
		t.Errorf("a ninth byte: %v", err)
	}
	if got := tail(f); got != "\n  12345678" {
		t.Errorf("%q", got)
	}
}

// A mount is noticed whether its command ends or stays, at once.
func TestAMountIsAwaited(t *testing.T) {
	for name, command := range map[string]string{
		"ends":  "sleep 0.1; mount -t tmpfs awaited %m",
		"stays": "mount -t tmpfs awaited %m; exec sleep 1000",
	} {
		dir := t.TempDir()
		inPrivateNamespace(t, func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := Run(ctx, "echo $$ >"+dir+".pid; "+command, dir); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if mounted, err := isMounted(dir); !mounted || err != nil {
				t.Errorf("%s: mounted: %v, %v", name, mounted, err)
			}
			b, err := os.ReadFile(dir + ".pid")
			if err != nil {
				t.Error(err)
				return
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Error(err)
				return
			}
			err = unix.Kill(pid, unix.SIGKILL)
			if name == "stays" && err != nil {
				t.Errorf("%s: its process: %v", name, err)
			}
		})
	}
}

func TestACommandThatMountsNothingInTimeIsKilled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err := Run(ctx, "echo $$ >"+dir+".pid; exec sleep 1000; : %m", dir)
	if err == nil || !strings.Contains(err.Error(), "in time") {
		t.Errorf("%v", err)
	}
	b, err := os.ReadFile(dir + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	// It is reaped by the goroutine that waits for it.
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) != unix.ESRCH; {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
		runtime.Gosched()
	}
}
