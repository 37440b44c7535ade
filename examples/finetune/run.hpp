#pragma once
// One fine-tuning run: the frozen base, a method by name on it, training on the shifted images, checkpoint and resume.
// The programs finetune and demo are two faces of it.

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/allocations.hpp"
#include "common/batches.hpp"
#include "common/interrupt.hpp"
#include "common/methods.hpp"
#include "common/progress.hpp"
#include "deltaw/deltaw.hpp"
#include "deltaw/io/peft.hpp"
#include "deltaw/io/state.hpp"
#include "finetune/method_init.hpp"
#include "vit/base_file.hpp"
#include "vit/images.hpp"

namespace finetune {

namespace dw = deltaw;
using dw::index_t;

/// What a run is made of. A resumed run takes all of it from the checkpoint.
struct Options {
  std::string method = "lora";  ///< a name of the registry, "frozen" (no training) or "head" (the head alone)
  index_t rank = 4;
  double alpha = 16;
  double dropout = 0;
  bool norms = false;                     ///< train the norms with the method, as PEFT's modules_to_save does
  std::vector<std::string> targets = {};  ///< layers that get the method, by PEFT's rules; empty: all linear layers
  std::vector<dw::OptionText> method_options = {};  ///< further options of the method
  long steps = 600;
  index_t batch = 64;
  double learning_rate = 3e-3;
  double weight_decay = 0.01;
  std::uint64_t seed = 0;
  index_t images = 2000;  ///< training images, as many of each label, chosen by the seed
  index_t held_out = 0;   ///< of these, how many are not trained on
  std::string data = examples::default_data_folder;
  std::string base = DELTAW_SOURCE_DIR "/examples/vit/base.safetensors";
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Options, method, rank, alpha, dropout, norms, targets, method_options, steps, batch,
                                   learning_rate, weight_decay, seed, images, held_out, data, base)

/// What training cost.
struct Cost {
  double seconds_per_step = 0;       ///< median
  std::size_t peak_extra_bytes = 0;  ///< most heap in use, over the weights of the model and the images
};

inline constexpr const char* adapter_name = "default";
inline constexpr const char* state_file = "state.safetensors";
inline constexpr const char* options_file = "options.json";
inline constexpr const char* weights_file = "model.safetensors";

inline bool trains(const Options& o) { return o.method != "frozen"; }

inline vit::Rest rest_of(const Options& o) {
  if (o.method == "full") return vit::Rest::Trained;
  return o.norms ? vit::Rest::Norms : vit::Rest::Frozen;
}

/// The request to the AdapterSet; rank, alpha and dropout go to methods that have them.
inline dw::AdaptRequest request_of(const Options& o) {
  dw::AdaptRequest request{.name = adapter_name, .targets = {.modules_to_save = {"head"}}, .heads = {"head"}};
  if (o.method == "head") return request;
  request.method = o.method;
  request.options = o.method_options;
  const auto defaults = dw::find_method<float, dw::Cpu>(o.method).defaults(o.method_options);
  const auto text = [](auto value) { return nlohmann::json(value).dump(); };  // the shortest that reads back the same
  const auto given = [&](const char* name) {
    return std::any_of(o.method_options.begin(), o.method_options.end(),
                       [&](auto& pair) { return pair.first == name; });
  };
  if (defaults.rank && !given("rank")) request.options.emplace_back("rank", text(o.rank));
  if (defaults.alpha && !given("alpha")) request.options.emplace_back("alpha", text(o.alpha));
  if (o.dropout > 0) {
    request.options.emplace_back("dropout", text(o.dropout));
    request.options.emplace_back("seed", text(o.seed));
  }
  request.targets.names = o.targets;
  request.targets.all_linear = o.targets.empty();
  return request;
}

class Run {
 public:
  using Model = vit::Vit<float>;

  /// Loads the base, puts the method on it and chooses the images. Throws for options, names and files that will not do.
  Run(Options options, const examples::LabelledImages& images)
      : options_(std::move(options)),
        images_(images),
        model_({}, rest_of(options_)),
        optimizer_({.weight_decay = options_.weight_decay}, {.max_gradient_norm = 1}) {
    vit::load_weights(model_, options_.base);
    bytes_before_ = examples::allocated_bytes();
    examples::reset_peak();
    if (trains(options_)) model_.set().adapt(model_.context(), request_of(options_), MethodInit{.seed = options_.seed});
    if (options_.held_out >= options_.images)
      dw::raise_mismatch<dw::OptionError>("finetune", "held_out", options_.held_out,
                                          "less than images = " + std::to_string(options_.images));
    auto chosen = examples::balanced_choice(images.labels, options_.images,
                                            dw::RandomKey{options_.seed}.fold(dw::name_hash("training images")));
    held_out_.assign(chosen.end() - options_.held_out, chosen.end());
    chosen.resize(chosen.size() - held_out_.size());
    batches_.emplace(std::move(chosen), options_.batch, options_.seed);
  }

  Model& model() { return model_; }
  const Options& options() const { return options_; }
  const std::vector<index_t>& held_out() const { return held_out_; }
  long step() const { return step_; }
  bool finished() const { return !trains(options_) || step_ >= options_.steps; }
  index_t trainable() { return dw::count_trained(model_.set()); }

  /// Trains to the end, or to the end of the step in which an interrupt came; says whether it is finished.
  bool train(bool quiet) {
    examples::Progress progress(options_.method, options_.steps, quiet, step_);
    double smooth = 0;
    while (!finished()) {
      if (examples::interrupted()) return false;
      const auto start = std::chrono::steady_clock::now();
      const double loss = train_step();
      seconds_.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      smooth = seconds_.size() == 1 ? loss : 0.95 * smooth + 0.05 * loss;
      char note[32];
      std::snprintf(note, sizeof note, "loss %.3f", smooth);
      progress.update(step_, note);
    }
    return true;
  }

  /// The share of `chosen` images, shifted, that are recognised.
  double accuracy(const examples::LabelledImages& images, std::span<const index_t> chosen, bool quiet = true) {
    examples::Progress progress(options_.method + ", test images", static_cast<long>(chosen.size()), quiet);
    return vit::accuracy(model_, images, chosen, vit::Look::Shifted, [&](long done) { progress.update(done); });
  }

  /// Of training so far in this process; of the evaluation where nothing is trained.
  Cost cost() const {
    Cost cost{.peak_extra_bytes = examples::peak_allocated_bytes() - bytes_before_};
    if (seconds_.empty()) return cost;
    auto sorted = seconds_;
    std::sort(sorted.begin(), sorted.end());
    cost.seconds_per_step = sorted[sorted.size() / 2];
    return cost;
  }

  /// A whole checkpoint: what is needed to go on (state.safetensors, options.json), and what was trained as others read it:
  /// PEFT's layout for methods that PEFT has, else model.safetensors with all weights where those were trained themselves.
  void save(const std::filesystem::path& folder) {
    dw::io::create_directories(folder);
    dw::io::write_atomically(folder / options_file, dw::io::dump_json("finetune", options_, 2) + "\n");
    dw::io::save_state(folder / state_file, model_.set(),
                       {.step = static_cast<std::uint64_t>(step_),
                        .seed = options_.seed,
                        .data_position = static_cast<std::uint64_t>(step_ * options_.batch),
                        .skipped = optimizer_.skipped()});
    if (!trains(options_)) return;
    if (options_.method == "full" || options_.method == "head")
      return vit::save_weights(model_, folder / weights_file, {{"method", options_.method}});
    try {
      dw::io::save_peft(model_.set(), adapter_name, folder, {.base_model_name_or_path = "deltaw/examples/vit"});
    } catch (const dw::UnsupportedError&) {  // a method that PEFT has not: state.safetensors holds all of it
    }
  }

  /// Goes on where the run that wrote `folder` was; returns what may make the last bits differ.
  std::vector<std::string> resume(const std::filesystem::path& folder) {
    std::vector<std::string> warnings;
    const auto state = dw::io::load_state(folder / state_file, model_.set(), &warnings);
    step_ = static_cast<long>(state.step);
    optimizer_.set_skipped(state.skipped);
    return warnings;
  }

 private:
  double train_step() {
    auto& ctx = model_.context();
    batch_.fill(images_, (*batches_)(step_), vit::Look::Shifted);
    const dw::Schedule rate{
        .peak = options_.learning_rate, .warmup_steps = options_.steps / 20, .total_steps = options_.steps};
    optimizer_.set_learning_rate(rate(step_));
    const dw::StepInfo step{.step = step_, .total_steps = options_.steps, .learning_rate = rate(step_)};
    auto& set = model_.set();
    dw::zero_grad(ctx, set);
    set.begin_step(ctx, step);
    set.prepare(ctx);
    const double loss =
        model_.accumulate_gradients(batch_.patches(), batch_.labels(), {.step = static_cast<std::uint64_t>(step_)});
    set.finish(ctx);
    set.regularize(ctx);
    if (!optimizer_.step(ctx, set).skipped) set.after_step(ctx, step);
    ++step_;
    return loss;
  }

  Options options_;
  const examples::LabelledImages& images_;
  Model model_;
  dw::Optimizer<dw::AdamW> optimizer_;
  std::optional<examples::Batches> batches_;
  std::vector<index_t> held_out_;
  vit::PatchBatch batch_;
  long step_ = 0;
  std::vector<double> seconds_;
  std::size_t bytes_before_ = 0;
};

/// What a run reached, as the programs write it.
inline nlohmann::ordered_json result_row(Run& run, double test_accuracy, const Cost& cost) {
  nlohmann::ordered_json options = nlohmann::json(run.options());
  for (const char* path : {"data", "base", "method", "seed"}) options.erase(path);
  return {{"method", run.options().method},
          {"seed", run.options().seed},
          {"test_accuracy", test_accuracy},
          {"trainable_parameters", run.trainable()},
          {"seconds_per_step", cost.seconds_per_step},
          {"peak_extra_bytes", cost.peak_extra_bytes},
          {"options", options}};
}

}  // namespace finetune
