// The wall clock, set: seconds in the file that WALL names, for the process that preloads this.
// libfaketime's sleeps fail when it leaves the monotonic clock alone.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *found)
{
	int result = syscall(SYS_clock_gettime, clock, found);
	if (clock != CLOCK_REALTIME || result)
		return result;
	char text[32] = "";
	int file = open(getenv("WALL"), O_RDONLY);
	read(file, text, sizeof(text) - 1);
	close(file);
	found->tv_sec = atoll(text);
	return 0;
}
