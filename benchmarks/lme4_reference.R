# Data and reference results of lme4, lmerTest and emmeans, for `benchmarks/lme4_agreement.py` and `make test-slow`.
#
#   Rscript benchmarks/lme4_reference.R DIR [MODEL...]
#
# Reads DIR/trials.csv (simulated trials) and writes, per model, DIR/MODEL-data.csv, -fixed.csv, -random.csv, -fit.csv.
# Every model is fitted as lme4 does by default, and once more from there with tight tolerances.

suppressPackageStartupMessages({library(lme4); library(lmerTest); library(emmeans)})
options(contrasts = c("contr.treatment", "contr.treatment"), warn = -1)
emm_options(lmerTest.limit = 1e5, pbkrtest.limit = 0)

arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[1]

trials <- function() {
  d <- read.csv(file.path(folder, "trials.csv"))
  d$method <- factor(d$method, levels = c("none", "sft", "ppo"))
  d$shift <- factor(d$shift, levels = c("none", "camera", "light"))
  d
}

hard <- function(name) {
  d <- read.csv(file.path(folder, paste0(name, ".csv")), encoding = "UTF-8")
  for (column in names(d)) if (is.character(d[[column]])) d[[column]] <- factor(d[[column]])
  d
}

plain <- function(d) {
  for (name in names(d)) if (is.ordered(d[[name]])) d[[name]] <- factor(d[[name]], ordered = FALSE)
  d
}

models <- list(
  sleepstudy = list(data = sleepstudy, formula = Reaction ~ Days + (Days | Subject), reml = TRUE),
  sleepstudy_ml = list(data = sleepstudy, formula = Reaction ~ Days + (Days | Subject), reml = FALSE),
  sleepstudy_uncorrelated = list(data = sleepstudy, formula = Reaction ~ Days + (Days || Subject), reml = TRUE),
  penicillin = list(data = Penicillin, formula = diameter ~ 1 + (1 | plate) + (1 | sample), reml = TRUE),
  pastes = list(data = Pastes[, c("strength", "batch", "cask")], formula = strength ~ 1 + (1 | batch / cask), reml = TRUE),
  insteval = list(data = plain(InstEval), formula = y ~ service + studage + (1 | s) + (1 | d) + (1 | dept:service), reml = TRUE),
  trials_linear = list(data = NULL, formula = rt ~ method * shift + margin + (1 | run) + (1 + margin | item), reml = TRUE,
                       means = ~ method | shift),
  cbpp = list(data = cbpp, formula = cbind(incidence, size - incidence) ~ period + (1 | herd), family = binomial,
              means = ~ period),
  verbagg = list(data = transform(VerbAgg, r2 = as.integer(r2 == "Y")),
                 formula = r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item), family = binomial),
  grouseticks = list(data = plain(grouseticks),
                     formula = TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION), family = poisson),
  hard_factors = list(data = hard("unbalanced"), formula = resp ~ A * B * C + (1 | subj) + (1 | item), family = binomial),
  hard_slope = list(data = hard("unbalanced"), formula = resp ~ A + B + log(m) + (1 | subj) + (1 + log(m) | item), family = binomial),
  hard_nested = list(data = hard("nested"), formula = y ~ t * cond + (1 + t | lab / p), reml = TRUE),
  hard_weights = list(data = hard("nested"), formula = y ~ t + cond + (1 | lab) + (t || lab:p), reml = TRUE, weights = "w"),
  hard_counts = list(data = hard("counts"), formula = cbind(k, N - k) ~ poly(x, 2) + offset(log(e)) + (1 | site) + (1 | year),
                     family = binomial),
  hard_shares = list(data = hard("counts"), formula = k / N ~ x + I(x^2) + factor(year) + (1 | site), family = binomial, weights = "N"),
  hard_poisson = list(data = hard("counts"), formula = events ~ x + offset(log(e)) + (1 | site) + (1 | obs), family = poisson),
  visits_laplace = list(data = hard("visits"), formula = y ~ trt * month + (1 | id), family = binomial),
  visits_5 = list(data = hard("visits"), formula = y ~ trt * month + (1 | id), family = binomial, nodes = 5),
  visits_15 = list(data = hard("visits"), formula = y ~ trt * month + (1 | id), family = binomial, nodes = 15),
  visits_slope = list(data = hard("visits"), formula = y ~ trt + (0 + dose | id), family = binomial, nodes = 11),
  visits_counts = list(data = hard("visits"), formula = cbind(k, N - k) ~ month + (1 | id), family = binomial, nodes = 9),
  visits_events = list(data = hard("visits"), formula = events ~ month + trt + (1 | id), family = poisson, nodes = 9),
  trials_logistic = list(data = NULL, formula = correct ~ method * shift + margin + (1 | run) + (1 | run:family) + (1 + margin | item),
                         family = binomial, means = ~ method | shift)
)

nodes <- function(model) if (is.null(model$nodes)) 1L else as.integer(model$nodes)

tight <- function(fit, model, data) {
  if (is.null(model$family)) {
    control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 1e-3, rhoend = 1e-9, maxfun = 1e5), calc.derivs = FALSE)
    engine <- if (nrow(data) < 2e4) lmerTest::lmer else lme4::lmer
    engine(model$formula, data, weights = .w, REML = model$reml, control = control, start = getME(fit, "theta"))
  } else {
    control <- glmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 1e-3, rhoend = 1e-8, maxfun = 1e5), tolPwrss = 1e-13)
    glmer(model$formula, data, weights = .w, family = model$family, control = control, nAGQ = nodes(model),
          start = list(theta = getME(fit, "theta"), fixef = fixef(fit)))
  }
}

for (name in if (length(arguments) > 1) arguments[-1] else names(models)) {
  model <- models[[name]]
  data <- if (is.null(model$data)) trials() else model$data
  data$.w <- if (is.null(model$weights)) 1 else data[[model$weights]]
  write.csv(data, file.path(folder, paste0(name, "-data.csv")), row.names = FALSE)
  linear <- is.null(model$family)
  seconds <- system.time(
    default <- if (linear) lme4::lmer(model$formula, data, weights = .w, REML = model$reml) else
      glmer(model$formula, data, weights = .w, family = model$family, nAGQ = nodes(model))
  )[["user.self"]]
  best <- tight(default, model, data)
  if (!linear && logLik(default) > logLik(best)) best <- default
  table <- function(fit) data.frame(term = names(fixef(fit)), estimate = fixef(fit), se = sqrt(diag(as.matrix(vcov(fit)))))
  fixed <- cbind(table(best), default = table(default)$estimate)
  fixed$df <- NA
  if (linear && nrow(data) < 2e4) {
    fixed$df <- coef(summary(best))[, "df"]
  }
  write.csv(fixed, file.path(folder, paste0(name, "-fixed.csv")), row.names = FALSE)
  write.csv(as.data.frame(VarCorr(best)), file.path(folder, paste0(name, "-random.csv")), row.names = FALSE)
  values <- data.frame(log_likelihood = as.numeric(logLik(best)), default_log_likelihood = as.numeric(logLik(default)),
                       aic = AIC(best), bic = BIC(best), seconds = seconds)
  write.csv(format(values, digits = 15), file.path(folder, paste0(name, "-fit.csv")), row.names = FALSE)
  if (!is.null(model$means)) {
    if (linear) {
      means <- as.data.frame(emmeans(best, model$means, lmer.df = "satterthwaite"))
    } else means <- as.data.frame(emmeans(best, model$means, type = "link"))
    write.csv(means, file.path(folder, paste0(name, "-means.csv")), row.names = FALSE)
  }
  # Conditional variances of large crossed designs take lme4 many minutes.
  effects <- as.data.frame(ranef(best, condVar = nrow(data) < 2e4))
  write.csv(effects, file.path(folder, paste0(name, "-modes.csv")), row.names = FALSE)
  cat(name, "\n")
}
