/* version.c: the git revision, handed over by the Makefile. */
#include "laser/version.h"

const char *laser_revision(void) { return LASER_REVISION; }
