// Threads that are created and end all the time, 4 generations at once; with
// the argument "exec", one of them also replaces the process by exec.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static char **args;
static volatile sig_atomic_t ending;
static void end(int s) { (void)s; ending = 1; }

static void *brief(void *arg)
{
	usleep(100);
	return arg;
}

static void *spawner(void *arg)
{
	for (int n = 0; !ending; n++) {
		pthread_t t[2];
		for (int i = 0; i < 2; i++)
			while ((errno = pthread_create(&t[i], 0, brief, 0)))
				if (errno != EAGAIN) { // EAGAIN: another thread is in exec (kernel/fork.c, copy_fs)
					perror("pthread_create");
					_exit(1);
				}
		for (int i = 0; i < 2; i++)
			pthread_join(t[i], 0);
		if (arg && n == 20)
			execv("/proc/self/exe", (char *[]){args[0], "again", 0});
	}
	return 0;
}

int main(int argc, char **argv)
{
	args = argv;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGTERM, end);
	if (argc < 2 || argv[1][0] == 'e') {
		printf("ready\n");
		fflush(stdout);
	}
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], 0, spawner, argc > 1 && i == 2 ? args : 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], 0);
	printf("fine\n");
	return 0;
}
