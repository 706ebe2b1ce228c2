// Every sentence that the pack's panels show, in the languages it speaks; `say` picks the editor's.

import { app } from "../../scripts/app.js";

const TEXTS = {
    en: {
        fits: "Fits.",
        takes: "Takes {time} ({basis}).",
        takes_about: "Takes about {time} ({basis}).",
        takes_unknown: "How long it takes is known after the first run.",
        basis_measured: "measured",
        basis_scaled: "from your runs of other sizes",
        basis_kernels: "from kernels measured here",
        basis_estimate: "an estimate, good to a third",
        basis_rough: "a rough guess from much smaller clips",
        no_plan: "No plan: {problem}",
        get_weights: "Get the weights",
        get_weights_title: "Open the LightX2V tab, which downloads them",
        connect_loader: "Connect this to a loader.",
        see_loader: "The loader says what is wrong.",
        offload_default: "The same as without this node.",
        rests_none: "All weights stay in VRAM",
        rests_none_cpu: "All weights stay in RAM",
        rests_block: "Blocks stream from RAM",
        rests_block_kept: "{kept} of {blocks} blocks stay in VRAM, the others stream from RAM",
        rests_phase: "Thirds of blocks stream from RAM",
        rests_disk: "Blocks are read from the drive as they are needed",
        rests_disk_kept: "{kept} of {blocks} blocks stay in VRAM, the others are read from the drive",
        tiled: "decoded in tiles",
        size: "{width}x{height}, {frames} frames",
        videos: "{count} videos",
        no_size: "no size connected",
        loras: "{count} LoRA",
        memory: "{name} {needed} of {available} GiB",
        lora_connect: "Connect a LightX2V loader to see how much of the LoRA applies.",
        video_length: "{frames} frames = {seconds} s of video at {rate} fps",
        set_size: "Set width and height",
        copy: "Copy",
        copy_title: "Copy to the clipboard",
        copied: "Copied",
        not_copied: "Not copied",
        seconds: "{seconds} s",
        minutes: "{minutes} min {seconds} s",
        hours: "{hours} h {minutes} min",
    },
    zh: {
        fits: "放得下。",
        takes: "需要 {time}（{basis}）。",
        takes_about: "大约需要 {time}（{basis}）。",
        takes_unknown: "第一次运行之后才能知道需要多久。",
        basis_measured: "实测",
        basis_scaled: "根据其他尺寸的运行推算",
        basis_kernels: "根据本机测得的算子速度",
        basis_estimate: "估算，误差约三分之一",
        basis_rough: "根据小得多的视频粗略推测",
        no_plan: "没有方案：{problem}",
        get_weights: "获取权重",
        get_weights_title: "打开 LightX2V 标签页进行下载",
        connect_loader: "请连接到加载器。",
        see_loader: "问题请看加载器上的说明。",
        offload_default: "与没有此节点时相同。",
        rests_none: "全部权重留在显存中",
        rests_none_cpu: "全部权重留在内存中",
        rests_block: "各块从内存流式传输",
        rests_block_kept: "{blocks} 块中有 {kept} 块留在显存，其余从内存传输",
        rests_phase: "每次从内存传输三分之一块",
        rests_disk: "需要时从硬盘读取各块",
        rests_disk_kept: "{blocks} 块中有 {kept} 块留在显存，其余从硬盘读取",
        tiled: "分块解码",
        size: "{width}x{height}，{frames} 帧",
        videos: "{count} 个视频",
        no_size: "未连接尺寸",
        loras: "{count} 个 LoRA",
        memory: "{name} {needed} / {available} GiB",
        lora_connect: "连接 LightX2V 加载器后，这里显示 LoRA 有多少生效。",
        video_length: "{frames} 帧 = {seconds} 秒视频（{rate} fps）",
        set_size: "设置宽度和高度",
        copy: "复制",
        copy_title: "复制到剪贴板",
        copied: "已复制",
        not_copied: "未能复制",
        seconds: "{seconds} 秒",
        minutes: "{minutes} 分 {seconds} 秒",
        hours: "{hours} 小时 {minutes} 分",
    },
};

function language() {
    const locale = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? navigator.language ?? "en";
    return String(locale).toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** Return a text by name, with its {holes} filled from `values`. */
export function say(name, values = {}) {
    const text = TEXTS[language()][name] ?? TEXTS.en[name];
    return text.replace(/\{(\w+)\}/g, (_, hole) => values[hole]);
}
