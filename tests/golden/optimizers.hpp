#pragma once
// Written by optimizers.py with torch 1.13.0a0 and Python 3.11.2 on x86_64; not to be edited.
// clang-format off

namespace deltaw_tests::golden {

inline constexpr long steps = 6;
inline constexpr double values[] = {
    0x1.0000000000000p-1, -0x1.4000000000000p+0, 0x0.0p+0, 0x1.0000000000000p+1, -0x1.0000000000000p-5, 0x1.c000000000000p+2};

inline constexpr double gradients[] = {
    0x1.0f6e8d3a53973p-4, 0x1.80f46f1ebf213p-5, 0x1.d6276549d121ep+0, 0x1.5e20f53cc4c77p+0, 0x1.1f115c8471adbp+0, 0x1.f338daaaec93bp-20,
    0x1.33d449b0b2b5bp-1, 0x1.79c4cc50d0f5bp-1, -0x1.9d127871df74bp-1, -0x1.98c1010293323p-1, 0x1.8919a94819b5dp-1, 0x1.15c0cd0137abap-21,
    0x1.f6d8e92fd72cep+0, 0x1.cae4f230cc977p-2, 0x1.29257037f8aa8p-1, 0x0.0p+0, 0x1.07b9a6152aa19p-3, -0x1.3880ded0a5f4ap-22,
    0x1.d5026572adeb7p-2, 0x1.b17a7806ce055p+0, 0x1.cab50d24f4e21p-4, 0x1.46ed947eac5a4p-3, 0x1.2681ad21df0e9p-1, -0x1.3035172a35710p-21,
    -0x1.ec5ba9587a7e5p-1, 0x1.9d8f88fd27f13p-1, 0x1.da25322729af0p-1, -0x1.a2612f581050cp-1, 0x1.477df58675679p-1, 0x1.549b693cc1f29p-22,
    -0x1.876f9619a0de4p+0, 0x1.76c32c2c9e686p-1, -0x1.a992b0fd48bdep-2, -0x1.fc914f4182f44p+0, 0x1.08455e6720298p-3, 0x1.ac4397b409386p-21};

inline constexpr double adamw_plain[] = {
    0x1.fc2e21ac07a20p-2, -0x1.41504f306354dp+0, -0x1.803d7c9aa79edp-9, 0x1.ffb780282bd0dp+0, -0x1.2b28bcbb7b9f0p-5, 0x1.bfc19b10bfcccp+2};

inline constexpr double adamw_decayed[] = {
    0x1.b14b1bc913016p-2, -0x1.57815995f9a25p+0, -0x1.c52e8fb65c144p-5, 0x1.f6cb363ac3cacp+0, -0x1.1123b4d164405p-3, 0x1.b86613b90d490p+2};

inline constexpr double adamw_undecayed[] = {
    0x1.0a2890cb59e99p-3, -0x1.c54b4eb3d7d65p+0, -0x1.2c32530f1eb65p-2, 0x1.e6c00b633fabbp+0, -0x1.1dd8fff33f3acp-1, 0x1.aa5081917e28ep+2};

inline constexpr double sgd_plain[] = {
    0x1.c2a78a9ef1f3bp-2, -0x1.b253e8e0ed148p+0, -0x1.c93b4bdc595c0p-3, 0x1.1a8e9661b61e9p+1, -0x1.783f279e7a721p-2, 0x1.bffffee5238b5p+2};

inline constexpr double sgd_momentum[] = {
    -0x1.ee1f909adce77p-3, -0x1.34f8379695389p+1, -0x1.c9f80029407fbp-1, 0x1.ff2aa4a36dd2ep+0, -0x1.34a7b4d249dddp+0, 0x1.bffffbeed6386p+2};

inline constexpr double sgd_dampened[] = {
    -0x1.04fafc0dce52bp-4, -0x1.106e897266865p+1, -0x1.c59fbd5055a2cp-1, 0x1.d65c6669cf42ap+0, -0x1.0b1e4e1fbebb5p+0, 0x1.bffffc09366ccp+2};

inline constexpr double sgd_nesterov[] = {
    -0x1.d1008680afb59p-3, -0x1.5f3c8cde633d1p+1, -0x1.073d698e1b650p+0, 0x1.1a2e93ab4123ep+1, -0x1.6ca6b971ade42p+0, 0x1.bffffb3c178abp+2};

inline constexpr double sgd_decayed[] = {
    0x1.81b0226f4dac3p-3, -0x1.d6feb08f53acdp+0, -0x1.a4db4e351b6e7p-2, 0x1.fe61e46796088p+0, -0x1.37200450a3d1ap-1, 0x1.9471a7e6d0e95p+2};

inline constexpr double sgd_decayed_nesterov[] = {
    0x1.16b51211b390bp-2, -0x1.e756fdbe6cb2cp+0, -0x1.a5e6032f2a988p-2, 0x1.0c4e167b9a5c7p+1, -0x1.4436c144f0d9ep-1, 0x1.909da24e77addp+2};

inline constexpr double norm_tight = 0x1.46867e6357f3ap+1;
inline constexpr double clipped_tight[] = {
    0x1.a99c9ef103a15p-7, 0x1.2dcf2ef155123p-7, 0x1.709b3ecbb38dcp-2, 0x1.1281572dbaf94p-2, 0x1.c2211ff91955ap-3, 0x1.876570b224370p-22};

inline constexpr double norm_loose = 0x1.46867e6357f3ap+1;
inline constexpr double clipped_loose[] = {
    0x1.0f6e8d3a53973p-4, 0x1.80f46f1ebf213p-5, 0x1.d6276549d121ep+0, 0x1.5e20f53cc4c77p+0, 0x1.1f115c8471adbp+0, 0x1.f338daaaec93bp-20};

}  // namespace deltaw_tests::golden
