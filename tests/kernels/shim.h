// What layernorm.cu needs of a GPU, on a CPU: a thread a CUDA thread, barriers for barriers, memory for shared memory.
// The blocks of a cluster run at the same time, all others one after the other.
#pragma once
#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(threads, blocks)
#define CLUSTER_DIMENSIONS(blocks)
#define SHARED(type, name) type& name = *reinterpret_cast<type*>(shim::here->block->shared)

namespace shim {
struct Warp {
    explicit Warp(int width) : barrier(width) {}
    std::barrier<> barrier;
    unsigned exchanged[32];
};

struct Block {
    explicit Block(int threads) : barrier(threads) {
        for (int first = 0; first < threads; first += 32) warps.push_back(std::make_unique<Warp>(std::min(32, threads - first)));
    }
    std::barrier<> barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    alignas(16) unsigned char shared[48 * 1024];
};

struct Cluster {
    Cluster(int blocks, int threads) : barrier(blocks * threads) {
        for (int i = 0; i < blocks; ++i) this->blocks.push_back(std::make_unique<Block>(threads));
    }
    std::barrier<> barrier;
    std::vector<std::unique_ptr<Block>> blocks;
};

struct Place {
    Cluster* cluster;
    Block* block;
    int rank, lane;
    Warp* warp;
    std::optional<std::barrier<>::arrival_token> arrival;
};

inline thread_local Place* here;
struct Index { int x; };
}  // namespace shim

inline thread_local shim::Index threadIdx, blockIdx;

inline float float_of(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned bits_of(float value) { return std::bit_cast<unsigned>(value); }

#include "rounding.cuh"

inline int int_of(float value) { return int(std::nearbyintf(value)); }
inline float float_of_half(unsigned short bits) { return float(std::bit_cast<_Float16>(bits)); }
inline unsigned short half_of(float value) { return std::bit_cast<unsigned short>(_Float16(value)); }
inline unsigned short bfloat16_of(float value) { return rounded_bfloat16(value); }
inline unsigned halves_of(float low, float high) { return half_of(low) | unsigned(half_of(high)) << 16; }
inline unsigned bfloat16s_of(float low, float high) { return bfloat16_of(low) | unsigned(bfloat16_of(high)) << 16; }
inline unsigned char e4m3_of(float value) { return rounded_e4m3(value); }

template <class Packed>
inline Packed loaded_late(const Packed* place) { return *place; }

template <class Bits>
inline Bits element_late(const Bits* place) { return *place; }

template <class Packed>
inline void store_whole(Packed* place, const Packed& v) { *place = v; }

inline unsigned shuffled(unsigned value, int mask) {
    shim::Warp& warp = *shim::here->warp;
    warp.exchanged[shim::here->lane] = value;
    warp.barrier.arrive_and_wait();
    const unsigned other = warp.exchanged[shim::here->lane ^ mask];
    warp.barrier.arrive_and_wait();
    return other;
}
inline float shuffled(float value, int mask) { return float_of(shuffled(bits_of(value), mask)); }

#ifdef PLANTED_MISSING_BARRIER
inline void block_barrier() {}
#else
inline void block_barrier() { shim::here->block->barrier.arrive_and_wait(); }
#endif
inline int cluster_rank() { return shim::here->rank; }
inline void cluster_arrive() { shim::here->arrival.emplace(shim::here->cluster->barrier.arrive()); }
inline void cluster_wait() { shim::here->cluster->barrier.wait(std::move(*shim::here->arrival)); }

template <class Value>
inline void store_remote(Value* place, const Value& value, int rank) {
    const auto offset = reinterpret_cast<unsigned char*>(place) - shim::here->block->shared;
    *reinterpret_cast<Value*>(shim::here->cluster->blocks[rank]->shared + offset) = value;
}

namespace shim {
// Run `kernel` for each thread of `blocks` blocks in clusters of `cluster`.
template <class Kernel>
void launch(int blocks, int cluster, int threads, Kernel kernel) {
    for (int first = 0; first < blocks; first += cluster) {
        Cluster place(cluster, threads);
        std::vector<std::jthread> running;
        for (int rank = 0; rank < cluster; ++rank)
            for (int thread = 0; thread < threads; ++thread)
                running.emplace_back([&, rank, thread] {
                    Block* block = place.blocks[rank].get();
                    Place mine{&place, block, rank, thread % 32, block->warps[thread / 32].get(), {}};
                    here = &mine;
                    threadIdx.x = thread;
                    blockIdx.x = first + rank;
                    kernel();
                });
    }
}
}  // namespace shim
