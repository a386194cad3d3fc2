/*
 * Whether hardware breakpoints work on this machine: ends with 0 if one that
 * is set in a child is hit, with 1 if the child runs past it. Some virtual
 * machines take the debug registers and ignore them; CRIU, which sets a
 * breakpoint to get its parasite out of a task, then waits for ever
 * (compel/src/lib/infect.c), unless told to do without.
 */
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void __attribute__((noinline)) here(void)
{
	__asm__ volatile("");
}

#define DEBUGREG(n) ((void *)offsetof(struct user, u_debugreg[n]))

int main(void)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return 2;
	if (!child) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		here();
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		return 2;
	/* DR7: breakpoint 0, local, on execution. */
	if (ptrace(PTRACE_POKEUSER, child, DEBUGREG(0), (void *)here) ||
	    ptrace(PTRACE_POKEUSER, child, DEBUGREG(7), (void *)1) ||
	    ptrace(PTRACE_CONT, child, NULL, NULL)) {
		kill(child, SIGKILL);
		return 1;
	}
	if (waitpid(child, &status, 0) != child)
		return 2;
	if (!WIFSTOPPED(status))
		return 1;
	kill(child, SIGKILL);
	return WSTOPSIG(status) == SIGTRAP ? 0 : 2;
}
