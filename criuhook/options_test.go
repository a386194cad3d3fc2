package criuhook

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"

	"spfs/internal/exit"
)

func TestCRIUOptions(t *testing.T) {
	for _, c := range []struct {
		args   string // separated by spaces
		config string // lines, joined by ";"
	}{
		{"", ""},
		{"--tcp-established --shell-job", "tcp-established;shell-job"},
		{"--ghost-limit 10M -l", "ghost-limit 10M;file-locks"},
		{"--ghost-limit=10M -j", "ghost-limit 10M;shell-job"},
		{"--manage-cgroups= --link-remap", `manage-cgroups "";link-remap`},
		{"-Jnet:/run/netns/a -J net:b", "join-ns net:/run/netns/a;join-ns net:b"},
	} {
		o, err := parseOptions(strings.Fields(c.args))
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if got := strings.Join(o.config, ";"); got != c.config {
			t.Errorf("%q became %q, want %q", c.args, got, c.config)
		}
	}
}

func TestCRIUOptionsOfTheMessage(t *testing.T) {
	o, err := parseOptions([]string{"--root", "/a b", "--external", "mnt[x y]:/z", "-r/c", "--external=dev[1/2]:k", "-v2", "--freeze-cgroup", "/sys/fs/cgroup/#1"})
	if err != nil {
		t.Fatal(err)
	}
	r := &rpc.CriuOpts{External: []string{"ours"}}
	done, err := o.apply(r)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if r.GetRoot() != "/c" || r.GetLogLevel() != 2 || r.GetFreezeCgroup() != "/sys/fs/cgroup/#1" || r.ConfigFile != nil ||
		!reflect.DeepEqual(r.External, []string{"ours", "mnt[x y]:/z", "dev[1/2]:k"}) {
		t.Errorf("%+v", r)
	}
}

func TestCRIUOptionsThatCannotBe(t *testing.T) {
	for _, args := range [][]string{
		{"word"}, {"--"}, {"-"}, {"-z"}, {"--root"}, {"--external="},
		{"--tree", "1"}, {"-t", "1"}, {"-D", "/x"}, {"--images-dir=/x"}, {"-R"}, {"-d"}, {"-o", "x"},
		{"-v9"}, {"-v", "x"}, {"-jl"}, {"--bad name"}, {"--Bad"}, {"---x"},
		{"--cgroup-root", "a b"}, {"--cgroup-root", "a#b"}, {"--cgroup-root", `a"b`}, {"--cgroup-root", "a\nroot /"},
		{"--x\naction-script", "/evil"},
	} {
		_, err := parseOptions(args)
		if exit.Status(err) != exit.Misused {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestConfigurationFileIsPrivateAndGoes(t *testing.T) {
	o, err := parseOptions([]string{"--tcp-close", "--ghost-limit", "1"})
	if err != nil {
		t.Fatal(err)
	}
	r := new(rpc.CriuOpts)
	done, err := o.apply(r)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(r.GetConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	b, err := os.ReadFile(r.GetConfigFile())
	if err != nil || string(b) != "tcp-close\nghost-limit 1\n" {
		t.Errorf("content %q, %v", b, err)
	}
	done()
	if _, err := os.Stat(r.GetConfigFile()); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// FuzzConfigLine: whatever an option is, it is one line.
func FuzzConfigLine(f *testing.F) {
	f.Add("ghost-limit", "10M")
	f.Add("a\nb", "c\nd")
	f.Fuzz(func(t *testing.T, name, value string) {
		line, err := configLine(name, value, true)
		if err != nil {
			return
		}
		if strings.ContainsAny(line, "\n#") || strings.Count(line, " ") != 1 || !strings.HasPrefix(line, name+" ") {
			t.Errorf("%q %q became %q", name, value, line)
		}
	})
}
