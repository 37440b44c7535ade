// Trains the base model that the other examples adapt, from scratch, on the upright images of Fashion-MNIST.

#include <cstdio>
#include <numeric>

#include "common/batches.hpp"
#include "common/interrupt.hpp"
#include "common/program.hpp"
#include "common/progress.hpp"
#include "deltaw/deltaw.hpp"
#include "vit/base_file.hpp"
#include "vit/images.hpp"

namespace dw = deltaw;
using dw::index_t;

namespace {

struct Options {
  std::string data = examples::default_data_folder;
  std::string out = "base.safetensors";
  long epochs = 8;
  index_t batch = 128;
  double learning_rate = 2e-3;
  double weight_decay = 0.05;
  std::uint64_t seed = 0;
  index_t held_out = 0;
  int threads = examples::max_threads();
  bool quiet = false;
};

void add_options(CLI::App& app, Options& o) {
  app.add_option("--data", o.data, "Folder with the four idx.gz files of Fashion-MNIST")->capture_default_str();
  app.add_option("--out", o.out, "The safetensors file to write")->capture_default_str();
  app.add_option("--epochs", o.epochs, "Passes over the training images")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--batch", o.batch, "Images a step")->check(CLI::Range(1, 10000))->capture_default_str();
  app.add_option("--lr", o.learning_rate, "Peak of the learning rate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--weight-decay", o.weight_decay, "Of AdamW")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--seed", o.seed, "Of the first weights and of the order of the images")->capture_default_str();
  app.add_option("--held-out", o.held_out,
                 "Leave so many training images out and report the accuracy on them instead of on the test set")
      ->check(CLI::Range(0, 50000))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_flag("--quiet", o.quiet, "No progress");
}

/// One step: every parameter of the model, decoupled decay, gradients clipped to norm 1.
double train_step(vit::Vit<float>& model, dw::Optimizer<dw::AdamW>& optimizer, const vit::PatchBatch& batch,
                  long step) {
  auto& ctx = model.context();
  dw::zero_grad(ctx, model.set());
  const double loss =
      model.accumulate_gradients(batch.patches(), batch.labels(), {.step = static_cast<std::uint64_t>(step)});
  optimizer.step(ctx, model.set());
  return loss;
}

int pretrain(const Options& o) {
  examples::set_threads(o.threads);
  const auto images = examples::read_fashion_mnist(o.data, "train");
  auto order = examples::shuffled(images.count(), dw::RandomKey{o.seed}.fold(dw::name_hash("held out")));
  const std::vector<index_t> held_out(order.end() - o.held_out, order.end());
  order.resize(order.size() - held_out.size());

  vit::Vit<float> model({}, vit::Rest::Trained);
  model.initialise(o.seed);
  model.set().adapt(
      model.context(),
      {.method = "full", .targets = {.all_linear = true, .modules_to_save = {"head"}}, .heads = {"head"}});
  const long steps = o.epochs * static_cast<long>(order.size()) / o.batch;
  const dw::Schedule rate{.peak = o.learning_rate, .warmup_steps = steps / 20, .total_steps = steps};
  dw::Optimizer<dw::AdamW> optimizer({.weight_decay = o.weight_decay}, {.max_gradient_norm = 1});
  examples::Batches batches(order, o.batch, o.seed);
  vit::PatchBatch batch;
  examples::catch_interrupts();
  {
    examples::Progress progress("pretrain", steps, o.quiet);
    double smooth = 0;
    for (long step = 0; step < steps; ++step) {
      if (examples::interrupted()) return examples::exit_interrupted;
      batch.fill(images, batches(step), vit::Look::Upright);
      optimizer.set_learning_rate(rate(step));
      const double loss = train_step(model, optimizer, batch, step);
      smooth = step == 0 ? loss : 0.98 * smooth + 0.02 * loss;
      char note[32];
      std::snprintf(note, sizeof note, "loss %.3f", smooth);
      progress.update(step + 1, note);
    }
  }

  const auto test = o.held_out > 0 ? examples::LabelledImages{} : examples::read_fashion_mnist(o.data, "t10k");
  std::vector<index_t> all(static_cast<std::size_t>(test.count()));
  std::iota(all.begin(), all.end(), index_t{0});
  const auto nothing = [](long) {};
  const double found = o.held_out > 0 ? vit::accuracy(model, images, held_out, vit::Look::Upright, nothing)
                                      : vit::accuracy(model, test, all, vit::Look::Upright, nothing);
  std::printf("accuracy on %s: %.2f %%\n",
              o.held_out > 0 ? (std::to_string(o.held_out) + " held-out images").c_str() : "the 10,000 test images",
              100 * found);
  vit::save_weights(model, o.out,
                    {{"model", "Vision Transformer of deltaw's examples"},
                     {"data", "Fashion-MNIST, upright"},
                     {"seed", std::to_string(o.seed)},
                     {"epochs", std::to_string(o.epochs)}});
  std::printf("wrote %s\n", o.out.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Trains a small Vision Transformer from scratch on the upright images of Fashion-MNIST and writes its "
      "weights: the frozen base of the other examples.",
      "pretrain");
  add_options(app, options);
  return examples::run_program(app, argc, argv, [&] { return pretrain(options); });
}
