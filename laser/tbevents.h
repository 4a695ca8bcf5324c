/* tbevents.h: writes a TensorBoard event file: records of length, masked CRC32C, and a hand-encoded
 * protocol buffer holding scalars. Knows the format and nothing of what is measured. */
#ifndef LASER_TBEVENTS_H
#define LASER_TBEVENTS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct TbScalar {
    const char *tag;
    double value; /* written as float; may be NaN */
} TbScalar;

typedef struct TbWriter TbWriter;

/* Creates a new file in DIR, which sorts behind the older ones. first_step > 0 tells TensorBoard to
 * forget what older files say about that step and later ones (of an attempt that died after its
 * last checkpoint). Every function dies (EXIT_IO) when the disk does not take the data. */
TbWriter *tb_open(const char *dir, int64_t first_step);
/* One event. Reaches the file at once when the last flush was more than 2 s ago. */
void tb_write(TbWriter *w, int64_t step, const TbScalar *scalars, int count);
void tb_flush(TbWriter *w);
void tb_close(TbWriter *w);

#ifdef __cplusplus
}
#endif
#endif
