// For test_start_vector.py: the start vector's entries as a function that the host can call.
#include "power.cuh"

extern "C" double entry(unsigned index) { return start_entry(index); }
