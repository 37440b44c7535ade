// LoRA on a GPU beside its floor, the frozen linear alone, forward and backward, by cuBLAS both; and AdamW over many factors
// beside the bytes it must move. Times are CUDA events; floor and LoRA alternate in random order, and each pair gives a ratio.
//   gpu [--quick] [--out FOLDER]       writes FOLDER/gpu.json; --quick is for seeing the program run, not for figures

#include <cstdio>
#include <cstring>
#include <deltaw/cuda.hpp>
#include <deque>
#include <fstream>
#include <string>
#include <vector>

#include "paired.hpp"

namespace dw = deltaw;
using dw::Cuda;
using dw::index_t;

struct
    Factors {  // outside of the unnamed namespace: nvcc would warn that concepts name its members and do not call them
  using Backend = Cuda;
  std::deque<dw::Parameter<float, dw::Device>> parameters;
  template <class F>
  void for_each_parameter(F&& f) {
    for (auto& p : parameters) f(p);
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    for (const auto& p : parameters) f(p);
  }
};

namespace {

/// Milliseconds that the stream is busy with what `f` enqueues, `times` times over.
class Clock {
 public:
  explicit Clock(Cuda::Context& ctx) : ctx_(ctx) {
    dw::cuda_detail::check(cudaEventCreate(&begin_), "cudaEventCreate");
    dw::cuda_detail::check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  Clock(const Clock&) = delete;
  ~Clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  template <class F>
  double operator()(int times, F&& f) {
    dw::cuda_detail::check(cudaEventRecord(begin_, ctx_.stream()), "cudaEventRecord");
    for (int i = 0; i < times; ++i) f();
    dw::cuda_detail::check(cudaEventRecord(end_, ctx_.stream()), "cudaEventRecord");
    ctx_.synchronize();
    float ms = 0;
    dw::cuda_detail::check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return static_cast<double>(ms) / times;
  }

 private:
  Cuda::Context& ctx_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

struct Row {
  std::string what;
  double floor_ms, ms;
  deltaw_bench::Interval ratio;
  double least;  ///< of the ratio, by FLOPs; for AdamW milliseconds by bytes and the measured bandwidth
};

/// `floor` and `with` in pairs of random order.
template <class Floor, class With>
Row measure(Clock& clock, std::string what, double least, int pairs, Floor floor, With with) {
  constexpr int warm_up = 3, times = 4;
  clock(warm_up, floor), clock(warm_up, with);
  std::mt19937 order(20261);
  std::vector<double> floors, withs, ratios;
  for (int i = 0; i < pairs; ++i) {
    double floor_ms = 0, ms = 0;
    if (order() % 2 == 0) {
      floor_ms = clock(times, floor);
      ms = clock(times, with);
    } else {
      ms = clock(times, with);
      floor_ms = clock(times, floor);
    }
    floors.push_back(floor_ms), withs.push_back(ms), ratios.push_back(ms / floor_ms);
  }
  using deltaw_bench::median_interval;
  Row row{std::move(what), median_interval(floors).median, median_interval(withs).median, median_interval(ratios),
          least};
  std::printf("%-38s floor %8.3f ms  with %8.3f ms  ratio %.3f [%.3f, %.3f]  least %.3f\n", row.what.c_str(),
              row.floor_ms, row.ms, row.ratio.median, row.ratio.low, row.ratio.high, row.least);
  std::fflush(stdout);
  return row;
}

template <class T>
void fill(Cuda::Context& ctx, dw::MatrixView<T, dw::Device> view, std::uint64_t key, double deviation) {
  Cuda::fill_normal(ctx, dw::RandomKey{key}, {}, deviation, view);
}

/// Forward and backward of one linear layer, with and without LoRA of each rank.
template <class Act>
void adapters(Cuda::Context& ctx, Clock& clock, std::vector<Row>& rows, const char* type, index_t tokens, index_t in,
              index_t out, int pairs) {
  dw::Tensor<Act, dw::Device> w(out, in), x(tokens, in), y(tokens, out), dy(tokens, out), dx(tokens, in);
  fill(ctx, w.view(), 1, 0.02), fill(ctx, x.view(), 2, 1), fill(ctx, dy.view(), 3, 1);
  const dw::DenseLinear<Act, Act, Cuda> base(w.view(), {});
  for (const index_t rank : {8, 16, 64}) {
    dw::Lora<float, Cuda, Act> lora(base.shape, {.rank = rank});
    typename dw::Lora<float, Cuda, Act>::Saved saved;
    lora.for_each_parameter([&](auto& p) { fill(ctx, p.value.view(), 4, 0.02); });
    const auto floor = [&] {
      base.forward(ctx, x.view(), y.view());
      Cuda::gemm(ctx, 1, dy.view(), w.view(), 0, dx.view());  // an engine without adapters overwrites
    };
    const auto with = [&] {
      base.forward(ctx, x.view(), y.view());
      lora.forward(ctx, base, x.view(), y.view(), saved);
      lora.backward(ctx, base, x.view(), dy.view(), {}, saved);
      Cuda::gemm(ctx, 1, dy.view(), w.view(), 0, dx.view());
      lora.backward_input(ctx, base, dx.view(), saved);
    };
    const auto r = static_cast<double>(rank), i = static_cast<double>(in), o = static_cast<double>(out);
    const std::string what = std::string(type) + " T " + std::to_string(tokens) + " " + std::to_string(in) + "x" +
                             std::to_string(out) + " r " + std::to_string(rank);
    rows.push_back(measure(clock, what, 1 + 1.5 * r * (i + o) / (i * o), pairs, floor, with));
  }
}

/// One AdamW step over the factors of `layers` x 7 modules beside a copy of as many bytes.
void adamw(Cuda::Context& ctx, Clock& clock, std::vector<Row>& rows, int layers, index_t width, int pairs) {
  Factors set;
  index_t count = 0;
  for (int i = 0; i < layers * 7 * 2; ++i) {
    auto& p = set.parameters.emplace_back("w", dw::Role::Down, dw::RankAxis::Rows, 16, width);
    fill(ctx, p.value.view(), 5, 1), fill(ctx, p.grad.view(), 6, 1e-3);
    count += p.value.size();
  }
  dw::Optimizer<dw::AdamW, Cuda> optimizer({}, {.max_gradient_norm = 1});
  dw::Tensor<float, dw::Device> from(1, 4 * count), to(1, 4 * count);  // 32 bytes a parameter in all, read and written
  const auto floor = [&] {
    dw::cuda_detail::check(
        cudaMemcpyAsync(to.view().data, from.view().data, from.bytes(), cudaMemcpyDeviceToDevice, ctx.stream()),
        "cudaMemcpyAsync");
  };
  const auto with = [&] { optimizer.step(ctx, set); };
  rows.push_back(measure(clock, "AdamW, norm, " + std::to_string(count) + " parameters", 1, pairs, floor, with));
}

void write(const std::string& file, const cudaDeviceProp& card, const std::vector<Row>& rows) {
  std::ofstream out(file);
  out << "{\"card\": \"" << card.name << "\", \"cuda\": " << CUDART_VERSION << ", \"rows\": [\n";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& r = rows[i];
    out << "  {\"what\": \"" << r.what << "\", \"floor_ms\": " << r.floor_ms << ", \"ms\": " << r.ms
        << ", \"ratio\": " << r.ratio.median << ", \"low\": " << r.ratio.low << ", \"high\": " << r.ratio.high
        << ", \"least\": " << r.least << "}" << (i + 1 < rows.size() ? ",\n" : "\n");
  }
  out << "]}\n";
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  std::string folder = ".";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(argv[i], "--out") == 0 && i + 1 < argc) {
      folder = argv[++i];
    } else {
      std::fprintf(stderr, "gpu: got '%s', want [--quick] [--out FOLDER]\n", argv[i]);
      return 2;
    }
  }
  cudaDeviceProp card{};
  dw::cuda_detail::check(cudaGetDeviceProperties(&card, 0), "cudaGetDeviceProperties");
  std::printf("%s, CUDA %d\n", card.name, CUDART_VERSION);
  Cuda::Context ctx;
  Clock clock(ctx);
  std::vector<Row> rows;
  const int pairs = quick ? 6 : 31;
  for (const index_t tokens : quick ? std::vector<index_t>{8} : std::vector<index_t>{4096, 16384})
    for (const index_t out : quick ? std::vector<index_t>{80} : std::vector<index_t>{4096, 11008}) {
      const index_t in = quick ? 72 : 4096;
      adapters<dw::bf16>(ctx, clock, rows, "bf16", tokens, in, out, pairs);
      adapters<float>(ctx, clock, rows, "float", tokens, in, out, pairs);
    }
  adamw(ctx, clock, rows, quick ? 1 : 64, quick ? 32 : 4096, pairs);
  write(folder + "/gpu.json", card, rows);
}
