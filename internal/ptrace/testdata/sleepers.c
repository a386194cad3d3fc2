// Four threads that sleep: what benchmarks stop.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

static int done;

static void *sleeper(void *arg)
{
	while (arg != &done)
		pause();
	return 0;
}

int main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pthread_t t;
	for (int i = 0; i < 3; i++)
		pthread_create(&t, 0, sleeper, 0);
	printf("ready\n");
	fflush(stdout);
	sleeper(0);
}
