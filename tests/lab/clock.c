// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Preloaded: a clock that is right, and that nobody can set. Without any library of its own, so
 * that it loads beside any libc.
 */
struct timeval {
	long seconds, microseconds;
};

int adjtime(const struct timeval *by, struct timeval *left)
{
	(void)by;
	if (left)
		left->seconds = left->microseconds = 0;
	return 0;
}

int adjtimex(void *timex)
{
	(void)timex;
	return 0; /* TIME_OK */
}

int clock_adjtime(int clock, void *timex)
{
	(void)clock, (void)timex;
	return 0;
}

int ntp_adjtime(void *timex)
{
	(void)timex;
	return 0;
}

int clock_settime(int clock, const void *time)
{
	(void)clock, (void)time;
	return 0;
}
