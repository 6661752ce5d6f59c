/*
 * init_finalize: how long an MPI program takes to start and to end, and nothing else.
 *
 *     mpicc -O2 -o init_finalize init_finalize.c
 *     prun --map-by ppr:1:node ./init_finalize           times only
 *     prun --map-by ppr:1:node ./init_finalize 1024      and an Alltoall of 1024 ints per pair, checked
 *
 * Rank 0 prints, every line prefixed ` 0)`: the size, processes x nodes x processes per node, the seconds in
 * MPI_Init, a barrier and MPI_Finalize, Init + Finalize, and their total. With an argument every rank
 * exchanges blocks with every other rank and checks what it got; a wrong block ends the program with status 1.
 */
#include <errno.h>
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t); /* MPI_Wtime may not be called outside Init .. Finalize */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Number of shared-memory nodes, and the largest number of ranks on one of them. */
static void count_nodes(int *nodes, int *per_node)
{
    MPI_Comm local;
    int rank, size, leader;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &rank);
    MPI_Comm_size(local, &size);
    leader = rank == 0;
    MPI_Allreduce(&leader, nodes, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(&size, per_node, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Comm_free(&local);
}

/* Every value names its sender, receiver and place, so that no misplaced block can look right. */
static int value(int from, int to, int place)
{
    return (from * 31 + to) * 17 + place;
}

/* Number of wrong values over all ranks after one Alltoall of `count` ints per pair. */
static long long check_alltoall(int rank, int size, int count)
{
    size_t total = (size_t)size * (size_t)count;
    int *out = malloc(total * sizeof *out), *in = calloc(total, sizeof *in);
    long long wrong = 0, all = 0;
    if (out == NULL || in == NULL) {
        fprintf(stderr, "rank %d: no memory for %zu values\n", rank, total);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (int peer = 0; peer < size; peer++)
        for (int i = 0; i < count; i++)
            out[(size_t)peer * (size_t)count + (size_t)i] = value(rank, peer, i);
    MPI_Alltoall(out, count, MPI_INT, in, count, MPI_INT, MPI_COMM_WORLD);
    for (int peer = 0; peer < size; peer++)
        for (int i = 0; i < count; i++)
            wrong += in[(size_t)peer * (size_t)count + (size_t)i] != value(peer, rank, i);
    MPI_Allreduce(&wrong, &all, 1, MPI_LONG_LONG, MPI_SUM, MPI_COMM_WORLD);
    free(out);
    free(in);
    return all;
}

/* The optional argument: ints per pair, or 0 when there is none; -1 when it is no such number. */
static int block_size(int argc, char **argv)
{
    char *end;
    long n;
    if (argc < 2)
        return 0;
    errno = 0;
    n = strtol(argv[1], &end, 10);
    return errno != 0 || end == argv[1] || *end != '\0' || n < 1 || n > INT_MAX ? -1 : (int)n;
}

int main(int argc, char **argv)
{
    int rank, size, nodes, per_node, count = block_size(argc, argv);
    long long wrong = 0;
    double start, init, barrier, alltoall = 0, finalize;

    if (count < 0) {
        fprintf(stderr, "usage: %s [INTS_PER_PAIR]\n", argv[0]);
        return 2;
    }
    start = seconds();
    MPI_Init(&argc, &argv);
    init = seconds() - start;

    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank == 0) {
        printf(" 0) Size: %d (Running)\n", size);
        fflush(stdout);
    }
    start = seconds();
    MPI_Barrier(MPI_COMM_WORLD);
    barrier = seconds() - start;

    count_nodes(&nodes, &per_node);
    if (count > 0) {
        start = seconds();
        wrong = check_alltoall(rank, size, count);
        alltoall = seconds() - start;
    }
    start = seconds();
    MPI_Finalize();
    finalize = seconds() - start;

    if (rank == 0) {
        printf(" 0) NP  : %9d procs [%4d Nodes at %3d PPN]\n", size, nodes, per_node);
        if (count > 0)
            printf(" 0) A2A : %9.3f sec (%d ints per pair, %lld wrong)\n", alltoall, count, wrong);
        printf(" 0) Init: %9.3f sec\n", init);
        printf(" 0) Barr: %9.3f sec\n", barrier);
        printf(" 0) Fin : %9.3f sec\n", finalize);
        printf(" 0) I+F : %9.3f sec\n", init + finalize);
        printf(" 0) Time: %9.3f sec\n", init + barrier + finalize);
    }
    return wrong != 0;
}
