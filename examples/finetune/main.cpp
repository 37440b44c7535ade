// Adapts the frozen base to images that are turned by a quarter and inverted, with any method by its name.

#include <cstdio>
#include <iostream>
#include <numeric>

#include "common/program.hpp"
#include "finetune/run.hpp"

namespace dw = deltaw;
using dw::index_t;

namespace {

struct Settings {
  finetune::Options run;
  std::string out = "finetune-out", json, resume;
  std::vector<std::string> method_options;
  index_t test_images = 10'000;
  int threads = examples::max_threads();
  bool quiet = false, list = false;
};

void add_options(CLI::App& app, Settings& s) {
  auto& o = s.run;
  const auto number = [&](const char* name, auto& value, const char* what, CLI::Validator check) {
    app.add_option(name, value, what)->check(check)->capture_default_str();
  };
  app.add_option("--method", o.method, "What to train: a method (--list shows them), 'head' or 'frozen'")
      ->capture_default_str();
  number("--rank", o.rank, "Rank of methods that have one", CLI::Range(1, 4096));
  app.add_option("--alpha", o.alpha, "LoRA's alpha, where a method has one: dW = alpha / rank * B A")
      ->capture_default_str();
  number("--dropout", o.dropout, "Of the adapter's input, where a method has it", CLI::Range(0.0, 0.999));
  app.add_flag("--norms", o.norms, "Train the norms with the method, as PEFT's modules_to_save does");
  app.add_option("--targets", o.targets,
                 "Layers that get the method, by the last parts of their names, as in PEFT: "
                 "query,value; the default is every linear layer")
      ->delimiter(',');
  app.add_option("--option", s.method_options, "A further option of the method, as NAME=VALUE; may be repeated");
  number("--steps", o.steps, "Training steps", CLI::Range(1, 10'000'000));
  number("--batch", o.batch, "Images a step", CLI::Range(1, 10'000));
  number("--lr", o.learning_rate, "Peak of the learning rate: linear warm-up over 5 % of the steps, then a cosine",
         CLI::PositiveNumber);
  number("--weight-decay", o.weight_decay, "Of AdamW, decoupled", CLI::NonNegativeNumber);
  app.add_option("--seed", o.seed, "Of the choice and order of the images, the first values and dropout")
      ->capture_default_str();
  number("--images", o.images, "Training images, as many of each label", CLI::Range(10, 60'000));
  number("--held-out", o.held_out, "Of these, how many are kept from training and reported on", CLI::Range(0, 60'000));
  app.add_option("--data", o.data, "Folder with the four idx.gz files of Fashion-MNIST")->capture_default_str();
  app.add_option("--base", o.base, "Weights of the base (safetensors)")->capture_default_str();
  app.add_option("--out", s.out,
                 "Folder for the checkpoint, which Ctrl-C leaves behind too; that of --resume if there is one")
      ->capture_default_str();
  app.add_option("--json", s.json, "File for the result");
  app.add_option("--resume", s.resume,
                 "Go on from the checkpoint in this folder, with the options it was begun with, to "
                 "the same bits as a run that was never interrupted");
  number("--test-images", s.test_images, "How many images of the test set to report on", CLI::Range(0, 10'000));
  number("--threads", s.threads, "Threads", CLI::Range(1, 1024));
  app.add_flag("--quiet", s.quiet, "No progress");
  app.add_flag("--list", s.list, "Show the methods and end");
}

int list_methods() {
  std::printf("%-10s nothing is trained\n%-10s the head alone is trained\n", "frozen", "head");
  for (const auto& [name, summary] : examples::method_summaries())
    std::printf("%-10s %s\n", name.c_str(), summary.c_str());
  return 0;
}

std::vector<dw::OptionText> split_options(const std::vector<std::string>& texts) {
  std::vector<dw::OptionText> options;
  for (const std::string& text : texts) {
    const auto sign = text.find('=');
    if (sign == std::string::npos || sign == 0)
      dw::raise_mismatch<dw::OptionError>("finetune", "--option", "'" + text + "'", "NAME=VALUE");
    options.emplace_back(text.substr(0, sign), text.substr(sign + 1));
  }
  return options;
}

/// The options of the run in `folder`. What the command line says must not contradict them, paths aside.
finetune::Options saved_options(const CLI::App& app, const Settings& s) {
  const auto path = std::filesystem::path(s.resume) / finetune::options_file;
  const auto json = dw::io::parse_json(path.string(), dw::io::read_text(path, 1 << 20));
  finetune::Options saved;
  try {
    saved = json.get<finetune::Options>();
  } catch (const nlohmann::json::exception& error) {
    dw::raise_mismatch<dw::FormatError>(path.string(), "options", error.what(), "what finetune wrote there");
  }
  if (app.count("--data") > 0) saved.data = s.run.data;
  if (app.count("--base") > 0) saved.base = s.run.base;
  const nlohmann::json given = s.run, kept = saved;
  const std::pair<const char*, const char*> names[] = {{"--method", "method"},
                                                       {"--rank", "rank"},
                                                       {"--alpha", "alpha"},
                                                       {"--dropout", "dropout"},
                                                       {"--norms", "norms"},
                                                       {"--steps", "steps"},
                                                       {"--targets", "targets"},
                                                       {"--option", "method_options"},
                                                       {"--batch", "batch"},
                                                       {"--lr", "learning_rate"},
                                                       {"--weight-decay", "weight_decay"},
                                                       {"--seed", "seed"},
                                                       {"--images", "images"},
                                                       {"--held-out", "held_out"}};
  for (const auto& [flag, field] : names)
    if (app.count(flag) > 0 && given[field] != kept[field])
      dw::raise_mismatch<dw::OptionError>("finetune", flag, given[field].dump(),
                                          kept[field].dump() + ", as the run to resume was begun");
  return saved;
}

int fine_tune(const CLI::App& app, Settings& s) {
  if (s.list) return list_methods();
  s.run.method_options = split_options(s.method_options);
  if (!s.resume.empty()) s.run = saved_options(app, s);
  if (!s.resume.empty() && app.count("--out") == 0) s.out = s.resume;
  examples::catch_interrupts();
  examples::set_threads(s.threads);
  const auto images = examples::read_fashion_mnist(s.run.data, "train");
  finetune::Run run(s.run, images);
  if (!s.resume.empty())
    for (const std::string& warning : run.resume(s.resume))
      std::fprintf(stderr, "finetune: note: %s\n", warning.c_str());
  if (!s.quiet) std::fprintf(stderr, "%s\n", dw::to_string(run.model().set().counts()).c_str());

  const bool finished = run.train(s.quiet);
  if (finetune::trains(s.run)) run.save(s.out);
  if (!finished) {
    std::fprintf(stderr, "finetune: stopped after %ld of %ld steps; go on with --resume %s\n", run.step(), s.run.steps,
                 s.out.c_str());
    return examples::exit_interrupted;
  }
  const finetune::Cost cost = run.cost();
  nlohmann::ordered_json row = finetune::result_row(run, 0, cost);
  if (s.run.held_out > 0) {
    row["held_out_accuracy"] = run.accuracy(images, run.held_out());
    std::printf("%s: %.2f %% of the %td held-out images\n", s.run.method.c_str(),
                100 * row["held_out_accuracy"].get<double>(), s.run.held_out);
  }
  row["test_accuracy"] = nullptr;
  if (s.test_images > 0) {
    const auto test = examples::read_fashion_mnist(s.run.data, "t10k");
    std::vector<index_t> chosen(static_cast<std::size_t>(std::min(s.test_images, test.count())));
    std::iota(chosen.begin(), chosen.end(), index_t{0});
    row["test_accuracy"] = run.accuracy(test, chosen, s.quiet);
    std::printf("%s: %.2f %% of %zu test images\n", s.run.method.c_str(), 100 * row["test_accuracy"].get<double>(),
                chosen.size());
  }
  std::printf("%.4f seconds a step, %.1f MB over the base\n", cost.seconds_per_step,
              static_cast<double>(cost.peak_extra_bytes) / 1e6);
  if (!s.json.empty()) dw::io::write_atomically(s.json, dw::io::dump_json("finetune", row, 2) + "\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app(
      "Adapts the frozen base, a small Vision Transformer that knows upright images of Fashion-MNIST, to images "
      "that are turned by a quarter and inverted. Ctrl-C ends the run after the step it is in and leaves a whole "
      "checkpoint in --out (exit 130); --resume goes on from it.",
      "finetune");
  add_options(app, settings);
  return examples::run_program(app, argc, argv, [&] { return fine_tune(app, settings); });
}
