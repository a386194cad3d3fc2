// A process that has something between itself and its system calls, or a
// handler that must survive: "strict" and "filter" (seccomp), "blocked" and
// "allowed" (syscall user dispatch), "handler" (of SIGSEGV; with a further argument, one
// must have arrived before the byte). When a byte
// arrives on stdin it says "fine", and then does what must still be answered
// as before; it ends with status 0, or by the signal that it asked for.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

static volatile char selector; // SYSCALL_DISPATCH_FILTER_ALLOW
static volatile sig_atomic_t handled;

static void handler(int sig)
{
	selector = 0;
	handled = sig;
}

static void say(const char *s)
{
	if (write(1, s, strlen(s)) < 0)
		_exit(2);
}

#define CHECK(cond) do { if (!(cond)) { say("wrong: " #cond "\n"); _exit(1); } } while (0)

// Everything but read, write, exit_group and sigreturn is fatal.
static void filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {sizeof code / sizeof *code, code};
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog));
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	const char *mode = argv[1];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct sigaction sa = {.sa_handler = handler};
	sigaction(SIGSEGV, &sa, 0);
	sigaction(SIGSYS, &sa, 0);
	int blocked = !strcmp(mode, "blocked");
	if (blocked || !strcmp(mode, "allowed"))
		CHECK(!prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector));
	say("ready\n");
	if (!strcmp(mode, "strict"))
		CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
	if (!strcmp(mode, "filter"))
		filter();
	char c;
	if (blocked) {
		selector = 1;
		// No system call: the parent looks at the state, and then the handler
		// lets the first one through.
		for (volatile unsigned long n = 0; n < 3000000000ul && !handled; n++)
			;
		selector = 0;
		CHECK(handled == SIGSEGV);
		handled = 0;
	}
	while (read(0, &c, 1) != 1)
		CHECK(errno == EINTR);
	say("fine\n");
	if (!strcmp(mode, "strict") || !strcmp(mode, "filter"))
		syscall(SYS_getpid); // must not return
	if (blocked || !strcmp(mode, "allowed")) {
		selector = 1;
		syscall(SYS_getpid);
		CHECK(handled == SIGSYS);
		selector = 0;
	}
	if (!strcmp(mode, "handler")) {
		CHECK(handled == (argc > 2 ? SIGSEGV : 0)); // as it was announced
		raise(SIGSEGV);
		CHECK(handled == SIGSEGV);
	}
	say("checked\n");
	_exit(0);
}
