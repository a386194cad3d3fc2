// Threads that replace or leave their process. With "exec", one execs when a
// byte arrives on stdin, while another sleeps; with "leader", the leader exits
// when a byte arrives, and another thread goes on.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void say(const char *what)
{
	printf("%s\n", what);
	fflush(stdout);
}

static volatile long sleeping;

static void *sleeper(void *arg)
{
	sleeping = syscall(SYS_gettid);
	pause();
	return arg;
}

static void *execs(void *arg)
{
	char c;
	while (!sleeping)
		;
	printf("ready %ld %ld\n", syscall(SYS_gettid), sleeping);
	fflush(stdout);
	if (read(0, &c, 1) == 1)
		execv("/proc/self/exe", (char *[]){arg, "after", 0});
	_exit(1);
}

static void *stays(void *arg)
{
	char c;
	say("ready");
	while (read(0, &c, 1) == 1 && c != 'q')
		;
	say("fine");
	_exit(0);
	return arg;
}

int main(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc > 1 && !strcmp(argv[1], "after")) {
		say("execed");
		pause();
	}
	int leader = argc > 1 && !strcmp(argv[1], "leader");
	pthread_t t;
	pthread_create(&t, 0, sleeper, 0);
	pthread_create(&t, 0, leader ? stays : execs, argv[0]);
	if (leader) {
		// Waits for the thread to be in its read, roughly; then exits under
		// whoever looks on.
		usleep(1000 * (argc > 2 ? atoi(argv[2]) : 0));
		syscall(SYS_exit, 0);
	}
	pause();
	return 0;
}
