// Makes one system call, named by its first argument, and says how it ended:
// "errno N" or "result N", milliseconds it took, signals handled.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;
static volatile unsigned long during; // the mask in the handler
static unsigned long mask_now(void)
{
	unsigned long m = 0;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &m, 8);
	return m;
}
static void handler(int sig) { (void)sig; handled++; during = mask_now(); }

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	const char *what = argv[1];
	struct sigaction sa = {.sa_handler = handler};
	if (argc > 2 && !strcmp(argv[2], "restart"))
		sa.sa_flags = SA_RESTART;
	sigaction(SIGUSR1, &sa, 0);
	sigset_t none, usr1;
	sigemptyset(&none);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	int p[2], s[2], ep = epoll_create1(0), word = 0;
	if (pipe(p) || socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		return 2;
	int sem = -1;
	char c;
	struct timeval soon = {0, 600000}, tv = {0, 600000};
	struct timespec ts = {0, 600000000};
	struct epoll_event ev;
	if (!strncmp(what, "masked-", 7))
		sigprocmask(SIG_BLOCK, &usr1, 0);
	if (!strcmp(what, "semop"))
		sem = semget(IPC_PRIVATE, 1, 0600);
	if (!strcmp(what, "recv-timeout"))
		setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	unsigned long before = mask_now();
	printf("ready\n");
	fflush(stdout);
	long start = now(), r = -2;
	errno = 0;
	if (!strcmp(what, "pause")) r = pause();
	else if (!strcmp(what, "read")) r = read(0, &c, 1);
	else if (!strcmp(what, "nanosleep")) r = nanosleep(&ts, 0);
	else if (!strcmp(what, "poll")) r = poll(0, 0, 600);
	else if (!strcmp(what, "select")) r = select(0, 0, 0, 0, &soon);
	else if (!strcmp(what, "epoll")) r = epoll_wait(ep, &ev, 1, 600);
	else if (!strcmp(what, "futex")) r = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &ts);
	else if (!strcmp(what, "masked-ppoll")) r = ppoll(0, 0, &ts, &none);
	else if (!strcmp(what, "masked-pselect")) r = pselect(0, 0, 0, 0, &ts, &none);
	else if (!strcmp(what, "masked-epoll")) r = epoll_pwait(ep, &ev, 1, 600, &none);
	else if (!strcmp(what, "masked-sigsuspend")) r = sigsuspend(&none);
	else if (!strcmp(what, "sigsuspend")) r = sigsuspend(&none);
	else if (!strcmp(what, "masked-sigtimedwait")) r = sigtimedwait(&usr1, 0, &ts);
	else if (!strcmp(what, "recv-timeout")) r = recv(s[0], &c, 1, 0);
	else if (!strcmp(what, "semop")) {
		struct sembuf op = {0, -1, 0};
		r = semtimedop(sem, &op, 1, &ts);
	} else if (!strcmp(what, "wait")) {
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			poll(0, 0, 600);
			_exit(0);
		}
		r = wait(0) > 0 ? 0 : -1;
	} else if (!strcmp(what, "vfork")) {
		// Waits uninterruptibly until the child has read something.
		if (!vfork()) {
			(void)!syscall(SYS_read, 0, &c, 1);
			_exit(0);
		}
		r = 0;
	}
	int e = errno;
	if (sem >= 0)
		semctl(sem, 0, IPC_RMID);
	printf("%s %ld ms=%ld handled=%d mask=%s\n", r < 0 ? "errno" : "result", r < 0 ? e : r, now() - start, handled,
	       mask_now() == before ? "kept" : "changed");
	fflush(stdout);
	return 0;
}
