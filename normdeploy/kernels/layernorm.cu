// LayerNorm and RMSNorm over the last axis, [residual add] -> norm -> [scale and bias] -> [quantization], in one pass.
//
// One source for every variant: normdeploy/kernels/variants.py defines the macros below, NVRTC compiles them.
//   N, EPS          features of a row, and what is added to the variance
//   BITS            1 fp32, 2 fp16, 3 bf16: the type that x, the residual, the sum and y are stored in
//   CENTRE          1 LayerNorm, 0 RMSNorm
//   RESIDUAL, SUM   1 where a residual is added to x first; 1 where that sum is written out
//   GAMMA, BETA     0 none, 1 fp32, 2 as x is stored
//   UNIFORM         1 where gamma and beta have one element each, which stands for all features
//   OUT             0 as x is stored, 1 int8, 2 fp8 e4m3
//   LANES, ROWS     threads a row in a block, rows a block
//   CLUSTER         blocks that share a row through distributed shared memory (sm_90 and newer)
//   VECTORS         16-byte vectors of a row that a thread holds; 0 streams the row, which is then read twice
//   PARKED          how many of them, the last ones, lie in shared memory, the others in registers
//
// Statistics are corrected two-pass (Chan, Golub, LeVeque 1983, eq. 1.7), in fp32:
//   m0 = mean(x),  s1 = sum(x - m0),  s2 = sum((x - m0)^2),  d = s1 / N,  var = s2 / N - d^2,
//   y = ((x - m0) - d) / sqrt(var + eps)
// so the error does not grow with |mean| / deviation. A row of one value has that value as its mean, exactly.
//
// Every base address is a multiple of 16 bytes. Where N fills no whole vectors, rows begin between two of them:
// what lies whole inside a row still moves as a vector, only its two ends move by element.

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "shim.h"
#endif

constexpr int VEC = BITS == 1 ? 4 : 8;  // elements in 16 bytes
constexpr bool ALIGNED = N % VEC == 0;
constexpr int THREADS = LANES * ROWS;
constexpr int STRIDE = LANES * CLUSTER;  // threads a row
constexpr int SPAN = ALIGNED ? N / VEC : (N + 2 * VEC - 2) / VEC;  // vectors that a row may touch
constexpr int BLOCKS_AN_SM = ROWS > 1 ? 3 : THREADS > 512 ? 1 : 1024 / THREADS;  // leaves a thread 80 or 64 registers
constexpr int AT_ONCE = OUT ? 1 : 2;  // steps of a streamed row, unrolled
constexpr int WARPS = (THREADS + 31) / 32;
constexpr float INVERSE_N = float(1.0 / N);

#if BITS == 1
typedef unsigned Bits;
#else
typedef unsigned short Bits;
#endif

#if OUT
typedef unsigned char Stored;
#else
typedef Bits Stored;
#endif

#if GAMMA == 1 || BETA == 1
typedef float Weight;
#else
typedef Bits Weight;
#endif

struct alignas(16) Vector { unsigned word[4]; };
struct alignas(VEC * sizeof(Stored)) Result { Stored element[VEC]; };
struct Weights { float of[VEC]; };

// -- storage types -------------------------------------------------------------------------------

__device__ __forceinline__ float widened(Bits bits) {
#if BITS == 1
    return float_of(bits);
#elif BITS == 2
    return float_of_half(bits);
#else
    return float_of(unsigned(bits) << 16);
#endif
}

__device__ __forceinline__ Bits narrowed(float value) {
#if BITS == 1
    return bits_of(value);
#elif BITS == 2
    return half_of(value);
#else
    return bfloat16_of(value);
#endif
}

__device__ __forceinline__ Bits bits_at(const Vector& v, int j) {
#if BITS == 1
    return v.word[j];
#else
    return Bits(v.word[j / 2] >> (16 * (j % 2)));
#endif
}

__device__ __forceinline__ void put(Vector& v, int j, Bits bits) {
#if BITS == 1
    v.word[j] = bits;
#else
    const int by = 16 * (j % 2);
    v.word[j / 2] = (v.word[j / 2] & ~(0xffffu << by)) | (unsigned(bits) << by);
#endif
}

__device__ __forceinline__ float at(const Vector& v, int j) { return widened(bits_at(v, j)); }

// Add `other` to `v`, element by element, and round to storage.
__device__ __forceinline__ void add(Vector& v, const Vector& other) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
#if BITS == 1
        v.word[word] = bits_of(float_of(v.word[word]) + float_of(other.word[word]));
#else
        const float low = at(v, 2 * word) + at(other, 2 * word);
        const float high = at(v, 2 * word + 1) + at(other, 2 * word + 1);
        v.word[word] = BITS == 2 ? halves_of(low, high) : bfloat16s_of(low, high);
#endif
    }
}

// -- where a thread's vectors lie ----------------------------------------------------------------

// Return true if the vector that begins at element `first` of a row lies in it as a whole.
__device__ __forceinline__ bool whole(int first) {
    return ALIGNED ? first < N : first >= 0 && first + VEC <= N;
}

// Call `visit(j)` for each element j of the vector at `first` that lies in the row.
template <class Visit>
__device__ __forceinline__ void each(int first, Visit visit) {
    if (whole(first)) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) visit(j);
    } else if (!ALIGNED) {
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            if (unsigned(first + j) < unsigned(N)) visit(j);
    }
}

__device__ __forceinline__ Vector loaded(const Bits* row, int first) {
    Vector v = {};
    if (whole(first))
        v = *reinterpret_cast<const Vector*>(row + first);
    else
        each(first, [&](int j) { put(v, j, row[first + j]); });
    return v;
}

template <class Packed, class Element>
__device__ __forceinline__ void store(Element* row, int first, const Packed& v) {
    if (whole(first)) {
        store_whole(reinterpret_cast<Packed*>(row + first), v);
    } else {
        each(first, [&](int j) { row[first + j] = reinterpret_cast<const Element*>(&v)[j]; });
    }
}

template <class Kind>
__device__ __forceinline__ float element(const Kind* all, int index) {
    if constexpr (sizeof(Kind) == 4)
        return float_of(element_late(reinterpret_cast<const unsigned*>(all) + index));
    else
        return widened(element_late(all + index));
}

// Move `words` down by `askew` elements of `bytes` bytes, less than 16 bytes in all; what moves in from above is void.
template <int COUNT>
__device__ __forceinline__ void moved_down(unsigned (&words)[COUNT], int askew, int bytes) {
    const int whole_words = askew * bytes / 4;
#pragma unroll
    for (int step = 2; step > 0; --step)
#pragma unroll
        for (int i = 0; i + step < COUNT; ++i) words[i] = whole_words & step ? words[i + step] : words[i];
    if (bytes == 2)
#pragma unroll
        for (int i = 0; i + 1 < COUNT; ++i) words[i] = askew & 1 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
}

// gamma and beta have no row, so where rows begin between two vectors, one of them lies askew in two vectors of gamma:
// both are loaded and moved. At the end of a row the second one would reach beyond it, and elements are loaded.
template <class Kind>
__device__ __forceinline__ Weights weights(const Kind* all, int first) {
    constexpr int A_VECTOR = 16 / sizeof(Kind), PARTS = VEC / A_VECTOR + (ALIGNED ? 0 : 1);
    Weights w = {};
    const int askew = ALIGNED ? 0 : first & (A_VECTOR - 1), begin = first - askew;
    if (UNIFORM) {
        const float only = element(all, 0);
#pragma unroll
        for (int j = 0; j < VEC; ++j) w.of[j] = only;
    } else if (whole(first) && (ALIGNED || begin + PARTS * A_VECTOR <= N)) {
        unsigned words[4 * PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const Vector v = loaded_late(reinterpret_cast<const Vector*>(all + begin + part * A_VECTOR));
#pragma unroll
            for (int word = 0; word < 4; ++word) words[4 * part + word] = v.word[word];
        }
        if (!ALIGNED) moved_down(words, askew, sizeof(Kind));
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            w.of[j] = sizeof(Kind) == 4 ? float_of(words[j]) : widened(Bits(words[j / 2] >> (16 * (j % 2))));
    } else {
        each(first, [&](int j) { w.of[j] = element(all, first + j); });
    }
    return w;
}

// -- statistics ----------------------------------------------------------------------------------

// The sum of elements, and which bits any and which all of them have: equal where the row has one value.
struct Mean {
    float sum;
    unsigned any, all;
    static __device__ __forceinline__ Mean of_nothing() { return {0.0f, 0u, ~0u}; }
    __device__ __forceinline__ void join(const Mean& other) {
        sum += other.sum;
        any |= other.any;
        all &= other.all;
    }
    __device__ __forceinline__ Mean from_lane(int mask) const {
        return {shuffled(sum, mask), shuffled(any, mask), shuffled(all, mask)};
    }
};

// Sums of differences from a centre, and of their squares.
struct Moments {
    float first, second;
    static __device__ __forceinline__ Moments of_nothing() { return {0.0f, 0.0f}; }
    __device__ __forceinline__ void join(const Moments& other) {
        first += other.first;
        second += other.second;
    }
    __device__ __forceinline__ Moments from_lane(int mask) const {
        return {shuffled(first, mask), shuffled(second, mask)};
    }
};

struct Shared {
    Mean means[CLUSTER * WARPS];
    Moments moments[CLUSTER * WARPS];
#if PARKED
    Vector parked[PARKED * THREADS];  // each thread touches its own alone
#endif
};

// A thread's part of a row.
struct Held {
    Vector in_registers[VECTORS - PARKED > 0 ? VECTORS - PARKED : 1];
    Vector* in_shared;
    __device__ __forceinline__ void put(int i, const Vector& v) {
        if (i < VECTORS - PARKED)
            in_registers[i] = v;
        else
            in_shared[(i - (VECTORS - PARKED)) * THREADS] = v;
    }
    __device__ __forceinline__ Vector get(int i) const {
        return i < VECTORS - PARKED ? in_registers[i] : in_shared[(i - (VECTORS - PARKED)) * THREADS];
    }
};

template <class Value, int WIDTH>
__device__ __forceinline__ Value joined_in_warp(Value value) {
#pragma unroll
    for (int mask = WIDTH / 2; mask > 0; mask /= 2) value.join(value.from_lane(mask));
    return value;
}

// Return the join of the values of all threads of a row, the same bits in each of them.
template <class Value>
__device__ __forceinline__ Value joined(Value value, Value* partial) {
    value = joined_in_warp<Value, (LANES < 32 ? LANES : 32)>(value);
    if (STRIDE <= 32) return value;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (CLUSTER == 1) {
        if (lane == 0) partial[warp] = value;
        block_barrier();
    } else {
        if (lane < CLUSTER) store_remote(&partial[cluster_rank() * WARPS + warp], value, lane);
        cluster_arrive();
        cluster_wait();
    }
    value = Value::of_nothing();
#pragma unroll
    for (int i = 0; i < CLUSTER * WARPS; i += 32)
        if (i + lane < CLUSTER * WARPS) value.join(partial[i + lane]);
    return joined_in_warp<Value, 32>(value);
}

__device__ __forceinline__ void add(Mean& mean, const Vector& v, int first) {
    each(first, [&](int j) { mean.sum += at(v, j); });
    if (whole(first)) {
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            mean.any |= v.word[word];
            mean.all &= v.word[word];
        }
    } else {
        each(first, [&](int j) {
            const unsigned twice = BITS == 1 ? bits_at(v, j) : bits_at(v, j) * 0x10001u;
            mean.any |= twice;
            mean.all &= twice;
        });
    }
}

__device__ __forceinline__ float value_of(const Mean& mean, float inverse_count) {
    const bool one_value = mean.any == mean.all && (BITS == 1 || mean.any >> 16 == (mean.any & 0xffffu));
    return one_value ? widened(Bits(mean.any)) : mean.sum * inverse_count;
}

__device__ __forceinline__ void add(Moments& moments, const Vector& v, int first, float centre) {
    each(first, [&](int j) {
        const float d = CENTRE ? at(v, j) - centre : at(v, j);
        if (CENTRE) moments.first += d;
        moments.second = fmaf(d, d, moments.second);
    });
}

// y = ((x - centre) - shift) * factor
struct Statistics { float centre, shift, factor; };

__device__ __forceinline__ Statistics statistics(const Moments& moments, float centre) {
    const float shift = CENTRE ? moments.first * INVERSE_N : 0.0f;
    float variance = moments.second * INVERSE_N;
    if (CENTRE) variance = fmaf(-shift, shift, variance);
    if (variance < 0.0f) variance = 0.0f;  // NaN stays
    return {centre, shift, 1.0f / sqrtf(variance + float(EPS))};
}

// -- output --------------------------------------------------------------------------------------

#if OUT
// ONNX QuantizeLinear of the stored value: the quotient is correctly rounded (Markstein 1990), then saturated.
struct Scale { float scale, inverse; };

__device__ __forceinline__ Stored quantized(float value, const Scale& s) {
    const float y = widened(narrowed(value));
    const float estimate = y * s.inverse;
    const float quotient = fmaf(fmaf(-estimate, s.scale, y), s.inverse, estimate);
    const float q = quotient == quotient ? quotient : estimate;  // infinity minus infinity
#if OUT == 1
    return Stored(int_of(fminf(fmaxf(q, -128.0f), 127.0f)));
#else
    return e4m3_of(q);
#endif
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AN_SM) CLUSTER_DIMENSIONS(CLUSTER) normdeploy_norm(
    const Bits* __restrict__ x,
#if RESIDUAL
    const Bits* __restrict__ residual,
#endif
#if GAMMA
    const Weight* __restrict__ gamma,
#endif
#if BETA
    const Weight* __restrict__ beta,
#endif
#if OUT
    const float* __restrict__ scale,
#endif
    int rows,
    Stored* __restrict__ y
#if SUM
    , Bits* __restrict__ sum
#endif
) {
    SHARED(Shared, shared);
    const int row = int(blockIdx.x) / CLUSTER * ROWS + int(threadIdx.x) / LANES;
    const int slot = int(threadIdx.x) % LANES + (CLUSTER > 1 ? cluster_rank() * LANES : 0);
    // A row that is not there is computed as the last one and not written: all threads of a warp must take part.
    const bool there = ROWS == 1 || row < rows;
    const long long start = (long long)(there ? row : rows - 1) * N;
    const int shift = ALIGNED ? 0 : int(start % VEC);
    if (CLUSTER > 1) cluster_arrive();  // the others' shared memory is there once all have arrived

    auto first_of = [&](int i) { return (i * STRIDE + slot) * VEC - shift; };
    auto fetched = [&](int first) {
        Vector v = loaded(x + start, first);
#if RESIDUAL
        add(v, loaded(residual + start, first));
#endif
        return v;
    };
    auto keep_sum = [&](int first, const Vector& v) {
#if SUM
        if (there) store(sum + start, first, v);
#endif
    };
#if OUT
    const Scale quantization = {*scale, 1.0f / *scale};
#endif
    auto write = [&](int first, const Vector& v, const Statistics& s) {
        Result out;
#if GAMMA
        const Weights scales = weights(gamma, first);
#endif
#if BETA
        const Weights shifts = weights(beta, first);
#endif
        each(first, [&](int j) {
            float value = (CENTRE ? (at(v, j) - s.centre) - s.shift : at(v, j)) * s.factor;
#if GAMMA && BETA
            value = fmaf(value, scales.of[j], shifts.of[j]);
#elif GAMMA
            value *= scales.of[j];
#elif BETA
            value += shifts.of[j];
#endif
#if OUT
            out.element[j] = quantized(value, quantization);
#else
            out.element[j] = narrowed(value);
#endif
        });
        if (there) store(y + start, first, out);
    };

#if VECTORS
    Held held;
#if PARKED
    held.in_shared = shared.parked + threadIdx.x;
#endif
    Mean mean = Mean::of_nothing();
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) held.put(i, fetched(first_of(i)));
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const Vector v = held.get(i);
        keep_sum(first_of(i), v);
        if (CENTRE) add(mean, v, first_of(i));
    }
    if (CLUSTER > 1) cluster_wait();
    const float centre = CENTRE ? value_of(joined(mean, shared.means), INVERSE_N) : 0.0f;
    Moments moments = Moments::of_nothing();
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) add(moments, held.get(i), first_of(i), centre);
    const Statistics s = statistics(joined(moments, shared.moments), centre);
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) write(first_of(i), held.get(i), s);
#else
    // The centre is the mean of a sample from end to end of the row: the nearer it is to the row's mean, the less the
    // correction loses.
    constexpr int STEPS = (SPAN + STRIDE - 1) / STRIDE, APART = SPAN / STRIDE;
    static_assert(APART >= 2, "shorter rows are held, not streamed");
    float centre = 0.0f;
    if (CENTRE) {
        Mean mean = Mean::of_nothing();
        const int first = slot * APART * VEC - shift;
        add(mean, fetched(first), first);
        centre = value_of(joined(mean, shared.means), 1.0f / float(STRIDE * VEC - shift));
    }
    Moments moments = Moments::of_nothing();
#pragma unroll AT_ONCE
    for (int i = 0; i < STEPS; ++i) {
        const Vector v = fetched(first_of(i));
        keep_sum(first_of(i), v);
        add(moments, v, first_of(i), centre);
    }
    const Statistics s = statistics(joined(moments, shared.moments), centre);
#pragma unroll AT_ONCE
    for (int i = 0; i < STEPS; ++i) {
#if SUM
        write(first_of(i), loaded(sum + start, first_of(i)), s);
#else
        write(first_of(i), fetched(first_of(i)), s);
#endif
    }
#endif
}
