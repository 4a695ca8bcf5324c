/* version.h: what was built. The Makefile passes the git revision to version.c alone. */
#ifndef LASER_VERSION_H
#define LASER_VERSION_H

#ifdef __cplusplus
extern "C" {
#endif

#define LASER_VERSION "0.1"
const char *laser_revision(void); /* git describe of the sources, "unknown" outside a checkout */

#ifdef __cplusplus
}
#endif
#endif
