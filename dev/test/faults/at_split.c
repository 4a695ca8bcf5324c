/* at_split.c: for LD_PRELOAD, with MPI: says which of how many this process is among those that MPI
 * takes for processes of its own machine: "local RANK of COUNT\n" on stderr. */
#include <mpi.h>
#include <stdio.h>

int MPI_Comm_split_type(MPI_Comm from, int type, int key, MPI_Info info, MPI_Comm *to) {
    int rank = -1, count = -1;
    const int status = PMPI_Comm_split_type(from, type, key, info, to);
    if (status == MPI_SUCCESS && type == MPI_COMM_TYPE_SHARED) {
        PMPI_Comm_rank(*to, &rank);
        PMPI_Comm_size(*to, &count);
        fprintf(stderr, "local %d of %d\n", rank, count);
    }
    return status;
}
