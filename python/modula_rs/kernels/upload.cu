// What a call brings: addresses of its arrays, scales from the host. It travels as a kernel parameter, so that nothing on the host
// has to stay alive until the device has read it. Bytes: those of the message, at most 3840 a launch.
#include "common.cuh"

struct Upload {
    uint64* destination;
    int count, unused;
    uint64 words[480];
};

KERNEL_BOUNDS(512, upload, Upload) {
    if (int(threadIdx.x) < p.count) p.destination[threadIdx.x] = p.words[threadIdx.x];
}
