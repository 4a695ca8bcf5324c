/* manifest_totals.h: what the manifests beside a loader's shards say of these shards together.
 * Finds them, reads each by manifest.h, compares it with the headers of the shards and adds up.
 * Knows nothing of models. */
#ifndef LASER_MANIFEST_TOTALS_H
#define LASER_MANIFEST_TOTALS_H

#include <stdint.h>

#include "dataloader/loader.h"
#include "dataloader/manifest.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of the shards of a loader that manifests name; a shard named by two of them counts once. */
typedef struct ManifestTotals {
    int manifests; /* that name any; 0: nothing else is known */
    int shards;    /* of the loader's, that are named */
    int64_t tokens, documents;
    double bytes; /* of text: of a split of which only some shards are read, its share by tokens */
    double entropy; /* nats: the manifests' unigram entropies, averaged by tokens; NAN unknown. Not
                       more than that of the tokens of all together. */
    int64_t inputs, bad_lines; /* files that the shards were made from; lines left out */
    int64_t absent;            /* shards that are named with these and are not there */
    char first_absent[MANIFEST_NAME];
    int32_t vocab, eos;
    uint64_t tokenizer_hash;
    char tokenizer_file[MANIFEST_NAME]; /* its name, without directory */
} ManifestTotals;

/* Reads the manifests in the directories of l's shards. A file that is not one is passed over. Dies
 * (EXIT_INPUT), naming the manifest and the shard, where one is torn or malformed, contradicts the
 * header of a shard, or was written with another tokenizer than the others. */
void manifest_totals_read(ManifestTotals *m, const Loader *l);

#ifdef __cplusplus
}
#endif
#endif
