// The PTX instructions that the kernels use, each in a function of its own. So the tests can replace this one file by a host version, which
// HOST_SHIM names, and run the kernels without a GPU.
#pragma once
#ifdef HOST_SHIM
#include HOST_SHIM
#else

// With -DONLY -DWANTED_<kernel>=~,1 one kernel is compiled alone: all others become templates that are never instantiated.
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#ifdef ONLY
#define SECOND(a, b, ...) b
#define IS_WANTED(...) SECOND(__VA_ARGS__, 0, 0)
#else
#define IS_WANTED(...) 1
#endif
#define DEFINE_0(attributes, name, Params) template <int unused> __device__ void name(const Params p)
#define DEFINE_1(attributes, name, Params) extern "C" __global__ void attributes name(const __grid_constant__ Params p)
#define DEFINE(attributes, name, Params) JOIN(DEFINE_, IS_WANTED(WANTED_##name))(attributes, name, Params)

// Without the 1 the assembler guesses how many blocks share an SM, and may spill registers to allow more of them.
#define KERNEL_BOUNDS(threads, name, Params) DEFINE(__launch_bounds__(threads, 1), name, Params)
#define KERNEL_BOUNDS_MIN(threads, blocks, name, Params) DEFINE(__launch_bounds__(threads, blocks), name, Params)
// A kernel whose blocks form clusters: they run on neighbouring SMs and can access each other's shared memory.
#define KERNEL_CLUSTER(blocks, threads, name, Params) DEFINE(__cluster_dims__(blocks, 1, 1) __launch_bounds__(threads, 1), name, Params)
// A swizzled tile needs an alignment of 1024 bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define INLINE __device__ __forceinline__

INLINE float bits_to_float(unsigned x) { return __uint_as_float(x); }
INLINE unsigned float_to_bits(float x) { return __float_as_uint(x); }
INLINE float half_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
INLINE unsigned short float_to_half(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
INLINE unsigned short float_to_bfloat(float x) {
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
// Two halves in a word, `low` at the lower address.
INLINE unsigned pack_halves(float low, float high) {
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// A barrier of the block that returns to all threads whether x is true in any of them.
INLINE bool any_thread(bool x) { return __syncthreads_or(x); }

// Returns x, but hides from the compiler that it does. So the compiler computes addresses again instead of keeping them in scarce
// registers.
INLINE int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

template <class T> INLINE T shuffle_xor(T x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

INLINE unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

// Loads four 8x8 matrices of halves; lane 8 i + r gives the address of row r of matrix i.
INLINE void load_matrices(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
INLINE void load_matrices_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// Transposes an 8x8 matrix of halves, of which each lane holds two.
INLINE unsigned transpose_matrix(unsigned x) {
    unsigned y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
// d += a b, where a is 16x16 and b is 16x8: products of halves, added as floats.
INLINE void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A barrier for 128 threads of the block. Barrier number 0 is __syncthreads.
INLINE void group_sync(int number) { asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory"); }

// Starts an asynchronous copy of sixteen bytes from device to shared memory.
INLINE void copy_async(unsigned destination, const void* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination), "l"(source) : "memory");
}
INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending> INLINE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

// Everything from here on needs compute capability 9.0 or later.

// The number of this block in its cluster, and a barrier for all threads of the cluster.
INLINE int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
INLINE void cluster_sync() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Loads the word at this shared-memory address of block `rank` of the cluster.
INLINE unsigned load_remote(unsigned address, int rank) {
    unsigned word;
    asm volatile(
        "{\n.reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %1, %2;\n"
        "ld.shared::cluster.u32 %0, [there];\n}" : "=r"(word) : "r"(address), "r"(rank) : "memory");
    return word;
}

#if __CUDA_ARCH__ >= 900
// A barrier in shared memory that counts arrivals, and bytes that the copy engine has written.
INLINE void barrier_init(unsigned barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
INLINE void barrier_expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
INLINE void barrier_wait(unsigned barrier, unsigned phase) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ready;\nbra again;\nready:\n}" ::"r"(barrier), "r"(phase) : "memory");
}
// Starts a copy of contiguous bytes, a multiple of 16, by the copy engine.
INLINE void copy_bulk(unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(destination), "l"(source), "r"(bytes), "r"(barrier) : "memory");
}

// Arrives at the barrier with this address in block `rank` of the cluster.
//
// The arrival has no release or acquire qualifier, as in CUTLASS's ClusterBarrier. Consumers read a stage through wgmma alone, which is
// complete after its wait, and the barrier itself counts the bytes that the copy engine writes, so no ordinary memory access has to be
// ordered. With qualifiers (-DCLUSTER_ORDER, to measure both) an arrival and a wait become MEMBAR.ALL.GPU and CCTL.IVALL in SASS, twice in
// every step of 64.
#ifdef CLUSTER_ORDER
#define ARRIVE "mbarrier.arrive.release.cluster.shared::cluster.b64"
#define TRY_WAIT "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64"
#else
#define ARRIVE "mbarrier.arrive.shared::cluster.b64"
#define TRY_WAIT "mbarrier.try_wait.parity.shared::cta.b64"
#endif
INLINE void barrier_arrive(unsigned barrier, int rank) {
    asm volatile(
        "{\n.reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        ARRIVE " _, [there];\n}" ::"r"(barrier), "r"(rank) : "memory");
}
// Waits like barrier_wait, for arrivals and copies of any block of the cluster.
INLINE void barrier_wait_cluster(unsigned barrier, unsigned phase) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n " TRY_WAIT " done, [%0], %1;\n"
        "@done bra ready;\nbra again;\nready:\n}" ::"r"(barrier), "r"(phase) : "memory");
}
// Copies like copy_bulk to the same shared-memory address of both blocks of a cluster of two. In each block its own barrier at this address
// counts the bytes.
INLINE void copy_bulk_to_both(unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 ::"r"(destination), "l"(source), "r"(bytes), "r"(barrier), "h"((unsigned short)3) : "memory");
}
// A flag in device memory. Whoever sees it raised also sees everything that was written before the barrier that preceded raise_flag.
INLINE void raise_flag(int* flag) { asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory"); }
INLINE void wait_for_flag(const int* flag) {
    int raised;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(raised) : "l"(flag) : "memory");
    while (!raised);
}
// Orders ordinary stores before later accesses by the copy engine and the tensor cores.
INLINE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Sets how many registers each thread may use from here on. All threads of the warpgroup must call it.
template <int count> INLINE void increase_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count)); }
template <int count> INLINE void decrease_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count)); }
INLINE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
// The sums are operands of the wait, so that the compiler does not move a use of them ahead of it.
template <int pending> INLINE void warpgroup_wait(float (&d)[64]) {
    asm volatile("wgmma.wait_group.sync.aligned %64;"
                 : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56) : "n"(pending) : "memory");
}
template <int pending> INLINE void warpgroup_wait(float (&sums)[2][64]) {
    float* d = &sums[0][0];
    asm volatile("wgmma.wait_group.sync.aligned %128;"
                 : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56),
                   D8(64), D8(72), D8(80), D8(88), D8(96), D8(104), D8(112), D8(120) : "n"(pending) : "memory");
}
// d += a b by one warpgroup, where a is 64x16 and b is 16x128. Descriptors say where the operands lie in shared memory.
// transposed: the rows of b, not its columns, are contiguous.
template <int transposed> INLINE void warpgroup_multiply_add(float (&d)[64], unsigned long long a, unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, 1, 1, 1, 0, %66;"
        : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56) : "l"(a), "l"(b), "n"(transposed));
}

// d += a b, where a is 64x16 and b is 16x256: sums[1] holds the columns from 128 on.
template <int transposed> INLINE void warpgroup_multiply_add(float (&sums)[2][64], unsigned long long a, unsigned long long b) {
    float* d = &sums[0][0];
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, 1, 1, 1, 0, %130;"
        : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56),
          D8(64), D8(72), D8(80), D8(88), D8(96), D8(104), D8(112), D8(120)
        : "l"(a), "l"(b), "n"(transposed));
}
#undef D8
#endif
#endif
